"""demand(batch) = base + ratio x shape(batch), and the largest batch within a budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint


def model(*shape: tuple[int, float], base: float = 100.0, ratio: float = 2.0) -> MemoryModel:
    points = tuple(ShapePoint(batch=batch, bytes=size) for batch, size in shape)
    return MemoryModel(base_bytes=base, ratio=ratio, shape=points, source="measured")


def test_two_points_define_a_line_that_extrapolates_in_both_directions() -> None:
    line = model((8, 80.0), (16, 160.0))

    assert [line.predict(batch) for batch in (0, 1, 8, 12, 16, 100)] == [100, 120, 260, 340, 420, 2100]


def test_one_point_defines_a_line_through_the_origin() -> None:
    assert model((4, 40.0)).predict(10) == 300


def test_predictions_interpolate_a_curve_and_continue_its_last_slope() -> None:
    quadratic = model((1, 1.0), (2, 4.0), (4, 16.0), base=0.0, ratio=1.0)

    assert [quadratic.predict(batch) for batch in (1, 1.5, 2, 3, 4, 6)] == [1, 2.5, 4, 10, 16, 28]


def test_no_batch_fits_in_a_budget_below_the_base() -> None:
    assert model((1, 1.0), (2, 2.0)).largest_within(99, ceiling=1000) == 0


def test_the_largest_batch_never_exceeds_the_ceiling() -> None:
    assert model((1, 1.0), (2, 2.0)).largest_within(10**12, ceiling=1000) == 1000


@given(
    base=st.floats(0, 1e10),
    ratio=st.floats(0.1, 10),
    steps=st.lists(st.tuples(st.integers(1, 500), st.floats(1, 1e7)), min_size=2, max_size=6),
    budget=st.floats(0, 1e12),
    ceiling=st.integers(1, 100_000),
)
@settings(deadline=None, database=None)
def test_the_largest_batch_fits_and_the_next_larger_does_not(
    base: float, ratio: float, steps: list[tuple[int, float]], budget: float, ceiling: int
) -> None:
    batch, size = 0, 0.0
    shape = []
    for more, per_sample in steps:
        batch, size = batch + more, size + more * per_sample
        shape.append((batch, size))
    one = model(*shape, base=base, ratio=ratio)

    largest = one.largest_within(budget, ceiling=ceiling)

    assert 0 <= largest <= ceiling
    assert largest == 0 or one.predict(largest) <= budget
    assert largest == ceiling or one.predict(largest + 1) > budget


def test_the_calibration_of_the_test_support_matches_its_memory_model() -> None:
    from tests.support.calibrations import BUDGET_BYTES, a_finding

    finding = a_finding()

    for batch, measured in finding.train_memory.points:
        assert finding.train_memory.predict(batch) == pytest.approx(measured, rel=0.002)
    assert finding.train.peak_bytes <= BUDGET_BYTES
    assert finding.train.batch <= finding.train_memory.largest_within(BUDGET_BYTES, ceiling=10_000)


def test_a_larger_batch_that_needs_less_memory_than_a_smaller_is_returned() -> None:
    """From 100 on the blocks are so large that they fragment nothing: 300 bytes at 99, 201 at 100."""
    points = (
        ShapePoint(batch=1, bytes=1.0),
        ShapePoint(batch=99, bytes=99.0),
        ShapePoint(batch=100, bytes=100.0, mapped_bytes=100.0),
        ShapePoint(batch=200, bytes=200.0, mapped_bytes=200.0),
    )
    one = MemoryModel(base_bytes=100.0, ratio=2.0, shape=points, source="measured")

    assert one.predict(99) == pytest.approx(298)
    assert one.predict(100) == pytest.approx(200)
    assert one.largest_within(250, ceiling=1000) == 150
    assert one.largest_within(250, ceiling=99) == 75
    assert one.largest_within(199, ceiling=1000) == 49
