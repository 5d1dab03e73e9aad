"""Measurement of the duration of each part of a calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchcal.calibration.records.time_slices import TimedPart, TimeSlice
from batchcal.core.clock import Clock


class TimeSlices:
    """Accumulates the duration of each part. Nested parts are not counted twice."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent: dict[TimedPart, float] = {}
        self._open: list[TimedPart] = []
        self._since = 0.0

    @contextmanager
    def spent_on(self, part: TimedPart) -> Iterator[None]:
        """Count the duration of the block as `part`."""
        self._add()
        self._open.append(part)
        self._spent.setdefault(part, 0.0)
        try:
            yield
        finally:
            self._add()
            self._open.pop()

    def spent_s(self, part: TimedPart) -> float:
        """Duration of a part so far, seconds."""
        return self._spent.get(part, 0.0)

    def durations(self) -> tuple[TimeSlice, ...]:
        """Durations in the order in which the parts first began."""
        return tuple(TimeSlice(part=part, wall_s=round(spent, 3)) for part, spent in self._spent.items())

    def _add(self) -> None:
        now = self._clock.monotonic()
        if self._open:
            self._spent[self._open[-1]] += now - self._since
        self._since = now
