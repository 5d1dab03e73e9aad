"""Where the time of a calibration goes."""

from __future__ import annotations

import pytest

from batchcal.calibration.records.time_slices import TimeSlice
from batchcal.core.clock import ManualClock
from batchcal.measure.time_slices import TimeSlices
from tests.support.calibrations import MADE_AT


def test_a_nested_part_is_counted_separately_and_repeated_parts_are_summed() -> None:
    clock = ManualClock(MADE_AT)
    slices = TimeSlices(clock)
    clock.move(1)
    with slices.spent_on("threads-and-workers"):
        clock.move(2)
        with slices.spent_on("worker-trial"):
            clock.move(4)
        clock.move(8)
    clock.move(16)
    with slices.spent_on("worker-trial"):
        clock.move(32)

    assert slices.durations() == (
        TimeSlice(part="threads-and-workers", wall_s=10),
        TimeSlice(part="worker-trial", wall_s=36),
    )


def test_a_part_that_fails_is_counted_too() -> None:
    clock = ManualClock(MADE_AT)
    slices = TimeSlices(clock)
    with pytest.raises(ValueError, match="no"), slices.spent_on("rehearsal"):
        clock.move(3)
        raise ValueError("no")

    assert slices.durations() == (TimeSlice(part="rehearsal", wall_s=3),)
