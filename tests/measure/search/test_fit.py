"""The memory model follows what was measured and does not believe a point that says nothing."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.measure.search.fit import OVERHEAD, fit

MIB = 1 << 20
SHAPE = (ShapePoint(batch=8, bytes=8 * MIB), ShapePoint(batch=64, bytes=64 * MIB))


def fitted(*points: tuple[int, int], base: float = 200 * MIB) -> MemoryModel:
    return fit(SHAPE, points, base_bytes=base, source="test", prior_ratio=1.15, spread=0.06)


def test_the_prior_is_used_without_a_measurement() -> None:
    assert fitted().predict(100) == pytest.approx((200 + 115) * MIB)


def test_the_fit_passes_exactly_through_the_largest_measurement() -> None:
    for points in (
        [(100, 330 * MIB)],
        [(100, 350 * MIB), (400, 740 * MIB)],
        [(10, 230 * MIB), (50, 240 * MIB), (400, 500 * MIB)],
    ):
        assert fitted(*points).predict(points[-1][0]) == pytest.approx(points[-1][1])


def test_one_large_measurement_determines_the_ratio() -> None:
    model = fitted((400, 700 * MIB))
    assert model.ratio == pytest.approx((500 * MIB - OVERHEAD) / (400 * MIB), rel=0.02)


def test_distant_measurements_on_a_line_determine_the_ratio() -> None:
    model = fitted(*((batch, round(200 * MIB + OVERHEAD + 1.3 * batch * MIB)) for batch in (100, 200, 400)))
    assert model.ratio == pytest.approx(1.3, rel=0.01)
    assert model.predict(1600) == pytest.approx(200 * MIB + OVERHEAD + 1.3 * 1600 * MIB, rel=0.01)
    assert model.relative_error == pytest.approx(0, abs=0.005)


def test_measurements_correct_a_wrong_base() -> None:
    """A buffer of 300 MiB that only a large step makes."""
    model = fitted(*((batch, round((500 + 1.2 * batch) * MIB)) for batch in (100, 400, 800)))
    assert model.predict(1600) == pytest.approx((500 + 1.2 * 1600) * MIB, rel=0.01)


def test_two_near_points_do_not_turn_noise_into_slope() -> None:
    model = fitted((400, 640 * MIB), (420, 720 * MIB))  # through them: 4 MiB a sample
    assert 1.05 <= model.ratio <= 1.3


def test_a_point_that_is_mostly_base_keeps_the_prior_slope() -> None:
    model = fitted((2, 260 * MIB), base=250 * MIB)
    assert model.ratio == pytest.approx(1.15, rel=0.02)


def test_decreasing_demand_is_treated_as_noise() -> None:
    assert fitted((100, 900 * MIB), (400, 210 * MIB)).ratio > 0


def test_the_relative_error_needs_more_measurements_than_unknowns() -> None:
    assert fitted((100, 350 * MIB), (400, 740 * MIB)).relative_error is None
    assert fitted((100, 350 * MIB), (200, 480 * MIB), (400, 740 * MIB)).relative_error is not None


def test_mapped_blocks_are_not_multiplied_by_the_ratio() -> None:
    shape = (ShapePoint(batch=100, bytes=100 * MIB), ShapePoint(batch=101, bytes=101 * MIB, mapped_bytes=101 * MIB))
    model = fit(shape, [(100, 370 * MIB)], base_bytes=200 * MIB, source="test", prior_ratio=1.5, spread=0.06)
    assert model.ratio == pytest.approx(1.5, abs=0.05)
    assert model.predict(101) < model.predict(100) - 40 * MIB


def test_largest_within_is_the_largest_size_predicted_to_fit() -> None:
    model = fitted((100, 330 * MIB))
    largest = model.largest_within(500 * MIB, ceiling=10_000)
    assert model.predict(largest) <= 500 * MIB < model.predict(largest + 1)


def test_a_curve_is_interpolated_and_extrapolated() -> None:
    model = MemoryModel(
        base_bytes=0.0,
        ratio=1.0,
        shape=tuple(ShapePoint(batch=batch, bytes=float(batch * batch)) for batch in (1, 10, 100)),
        source="test",
    )
    assert model.on_paper(55) == pytest.approx((100 + 10_000) / 2)
    assert model.on_paper(200) == pytest.approx(10_000 + 100 * 110)
