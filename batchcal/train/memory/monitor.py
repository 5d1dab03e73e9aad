"""Memory over time (current, peak, average and trend), and the fence that follows it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from batchcal.core.clock import Clock
from batchcal.core.values import Frozen
from batchcal.guard.limits.fence import OwnDataLimit
from batchcal.train.memory.available import AvailableMemory, Meter

INTERVAL_S: Final = 0.05
"""Interval of the readings, seconds. Another process that takes 10 MB/s takes half a megabyte in that time."""
SLOWEST_S: Final = 0.25
TOUCHED_BYTES_PER_S: Final = 2 << 30
"""Growth of another process that only touches new pages (measured on two cores, without huge pages: 1.4-1.9 GiB/s). If more
is free than it could take until the next reading, that reading can wait."""
TREND_READINGS: Final = 100
RESERVE_SHARE: Final = 0.03
RESERVE_BYTES: Final = 32 << 20
"""Part of the limit that the fence keeps free: other processes grow between two readings, and the kernel needs pages, too."""
REARM_BYTES: Final = 1 << 20
"""Smaller changes of the room do not move the fence."""


class MemoryTrend(Frozen):
    """Memory of this process since the start of the monitor, bytes."""

    current_bytes: int
    peak_bytes: int
    average_bytes: float
    trend_bytes_per_s: float
    """Slope of the total use, other processes included, over the latest readings: straight line by least squares."""
    readings: int


class MemoryMonitor:
    """Reader of `meter` at an interval, in a separate thread, while entered.

    With `fence` it also sets the data limit of this process to the available room. An allocation that would make the kernel kill
    a process then fails instead, and the training can recover. The limit follows the room as it shrinks and grows.
    """

    def __init__(self, meter: Meter, clock: Clock, *, interval_s: float = INTERVAL_S, fence: bool = False) -> None:
        self._meter, self._clock, self._interval_s = meter, clock, interval_s
        self.fenced = fence
        """True if the fence is in force."""
        self._lock = threading.Lock()
        self._latest: deque[tuple[float, int]] = deque(maxlen=TREND_READINGS)
        self._current = self._peak = self._sum = self._readings = 0
        self._fence = OwnDataLimit()
        self._fence_at: int | None = None
        self._room: AvailableMemory | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="batchcal-memory", daemon=True)

    def __enter__(self) -> MemoryMonitor:
        self.read()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.fenced:
            self._fence.lift()
        self._meter.close()

    def available(self) -> AvailableMemory:
        """Return the latest reading of the thread if it runs and the limit is unchanged. Otherwise read now.

        The memory of this process may have changed since that reading: see `own_bytes`.
        """
        latest = self._latest_room() if self._thread.is_alive() else None
        return self.read() if latest is None else latest

    def own_bytes(self) -> int:
        """Return the memory that this process holds now."""
        return self._meter.own_bytes()

    def _latest_room(self) -> AvailableMemory | None:
        """Return the latest reading. None: there is none, or the limit has changed since."""
        with self._lock:  # a reading may reopen the files of the meter
            latest = self._room
            return latest if latest is not None and self._meter.limit_bytes() == latest.limit_bytes else None

    def read(self) -> AvailableMemory:
        """Read now and adjust the fence."""
        with self._lock:
            room = self._room = self._meter.read()
            self._current = room.own_bytes
            self._peak = max(self._peak, room.own_bytes)
            self._sum += room.own_bytes
            self._readings += 1
            self._latest.append((self._clock.monotonic(), room.used_bytes))
            if self.fenced:
                self._arm(room)
            return room

    def trend(self) -> MemoryTrend:
        """Return the values up to now."""
        with self._lock:
            return MemoryTrend(
                current_bytes=self._current,
                peak_bytes=self._peak,
                average_bytes=self._sum / max(self._readings, 1),
                trend_bytes_per_s=_slope(list(self._latest)),
                readings=self._readings,
            )

    def _watch(self) -> None:
        due = 0.0
        while not self._stop.wait(self._interval_s):
            try:
                now = self._clock.monotonic()
                # A lowered limit is noticed at once: reading only the limit costs almost nothing.
                if now < due and self._latest_room() is not None:
                    continue
                room = self.read()
            except OSError:  # the control group no longer exists: there is nothing to read
                return
            due = now + min((room.limit_bytes - room.used_bytes) / TOUCHED_BYTES_PER_S, SLOWEST_S)

    def _arm(self, room: AvailableMemory) -> None:
        growth = room.limit_bytes - room.used_bytes - reserve_bytes(room.limit_bytes)
        top = room.own_bytes + growth
        if self._fence_at is not None and abs(top - self._fence_at) < REARM_BYTES:
            return
        self.fenced = self._fence.hold(growth)
        self._fence_at = top


def reserve_bytes(limit_bytes: int) -> int:
    """Return the part of a limit that stays free."""
    return max(RESERVE_BYTES, int(limit_bytes * RESERVE_SHARE))


def _slope(readings: list[tuple[float, int]]) -> float:
    if len(readings) < 2:
        return 0.0
    middle = sum(at for at, _ in readings) / len(readings)
    spread = sum((at - middle) ** 2 for at, _ in readings)
    return sum((at - middle) * used for at, used in readings) / spread if spread > 0 else 0.0
