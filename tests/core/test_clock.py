"""Time as an argument."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from batchcal.core.clock import Clock, ManualClock, SystemClock


def test_a_manual_clock_moves_only_when_it_is_told_to() -> None:
    start = datetime(2026, 7, 1, tzinfo=UTC)
    clock: Clock = ManualClock(start)
    stood = (clock.now(), clock.monotonic())
    assert isinstance(clock, ManualClock)
    clock.move(90)

    assert stood == (start, 0.0)
    assert clock.now() == start + timedelta(seconds=90)
    assert clock.monotonic() == 90.0


def test_the_machines_clock_knows_its_zone_and_goes_forward() -> None:
    clock: Clock = SystemClock()

    assert clock.now().tzinfo is UTC
    assert clock.monotonic() <= clock.monotonic()
