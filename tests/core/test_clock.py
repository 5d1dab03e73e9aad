"""Time as an argument."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from batchcal.core.clock import Clock, ManualClock, SystemClock


def test_a_manual_clock_advances_only_with_move() -> None:
    start = datetime(2026, 7, 1, tzinfo=UTC)
    clock: Clock = ManualClock(start)
    stood = (clock.now(), clock.monotonic())
    assert isinstance(clock, ManualClock)
    clock.move(90)

    assert stood == (start, 0.0)
    assert clock.now() == start + timedelta(seconds=90)
    assert clock.monotonic() == 90.0


def test_the_system_clock_is_in_utc_and_monotonic() -> None:
    clock: Clock = SystemClock()

    assert clock.now().tzinfo is UTC
    assert clock.monotonic() <= clock.monotonic()
