"""The memory model follows what was measured and does not believe a point that says nothing."""

from __future__ import annotations

import pytest

from batchcal.calibration.memory_model import MemoryModel, ShapePoint
from batchcal.measure.search.fit import fit

MIB = 1 << 20
SHAPE = (ShapePoint(batch=8, bytes=8 * MIB), ShapePoint(batch=64, bytes=64 * MIB))


def fitted(*points: tuple[int, int], base: float = 200 * MIB) -> MemoryModel:
    return fit(SHAPE, points, base_bytes=base, source="test", prior_ratio=1.15, spread=0.06)


def test_without_a_point_the_prior_holds() -> None:
    assert fitted().predict(100) == pytest.approx((200 + 115) * MIB)


def test_one_point_gives_the_ratio_over_the_base() -> None:
    assert fitted((100, 330 * MIB)).predict(200) == pytest.approx((200 + 260) * MIB)


def test_two_far_points_give_the_line_through_them() -> None:
    model = fitted((100, 350 * MIB), (400, 740 * MIB))
    assert model.predict(100) == pytest.approx(350 * MIB)
    assert model.predict(400) == pytest.approx(740 * MIB)


def test_two_near_points_do_not_turn_noise_into_slope() -> None:
    model = fitted((100, 300 * MIB), (110, 360 * MIB))
    assert model.ratio == pytest.approx(160 / 110)


def test_a_point_that_is_mostly_base_keeps_the_prior_slope() -> None:
    model = fitted((2, 260 * MIB), base=250 * MIB)
    assert model.ratio == pytest.approx(1.15)
    assert model.predict(2) == pytest.approx(260 * MIB)


def test_the_error_is_only_told_where_there_are_more_points_than_unknowns() -> None:
    assert fitted((100, 350 * MIB), (400, 740 * MIB)).relative_error is None
    assert fitted((100, 350 * MIB), (200, 480 * MIB), (400, 740 * MIB)).relative_error == pytest.approx(0, abs=1e-6)


def test_largest_within_is_the_last_that_is_predicted_to_stay_within() -> None:
    model = fitted((100, 330 * MIB))
    largest = model.largest_within(500 * MIB, ceiling=10_000)
    assert model.predict(largest) <= 500 * MIB < model.predict(largest + 1)


def test_a_curve_is_followed_between_its_points_and_goes_on_beyond_them() -> None:
    model = MemoryModel(
        base_bytes=0.0,
        ratio=1.0,
        shape=tuple(ShapePoint(batch=batch, bytes=float(batch * batch)) for batch in (1, 10, 100)),
        source="test",
    )
    assert model.on_paper(55) == pytest.approx((100 + 10_000) / 2)
    assert model.on_paper(200) == pytest.approx(10_000 + 100 * 110)
