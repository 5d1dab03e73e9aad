"""Clocks that are passed as arguments, so that tests control the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def now(self) -> datetime:
        """Wall clock time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never decrease."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when `move` is called."""

    def __init__(self, at: datetime) -> None:
        self._at = at
        self._seconds = 0.0

    def now(self) -> datetime:
        return self._at

    def monotonic(self) -> float:
        return self._seconds

    def move(self, seconds: float) -> None:
        self._at += timedelta(seconds=seconds)
        self._seconds += seconds
