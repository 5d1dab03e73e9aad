"""Memory over time: now, at most, on average and where it is going; and the fence that follows it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from batchcal.core.clock import Clock
from batchcal.core.values import Frozen
from batchcal.guard.fence import OwnDataLimit
from batchcal.train.memory.room import Meter, Room

INTERVAL_S: Final = 0.05
"""A neighbour that takes 10 MB/s takes half a megabyte in that time."""
SLOWEST_S: Final = 0.25
TOUCHED_BYTES_PER_S: Final = 2 << 30
"""What a neighbour takes that does nothing but touch new pages (measured on two cores, without huge pages: 1.4-1.9 GiB/s). Where
more is free than it could take until the next reading, that one can wait."""
TREND_READINGS: Final = 100
RESERVE_SHARE: Final = 0.03
RESERVE_BYTES: Final = 32 << 20
"""What the fence leaves of the limit: a neighbour grows between two readings, and the kernel has pages of its own."""
REARM_BYTES: Final = 1 << 20
"""Room that changes by less leaves the fence where it is."""


class MemoryTrend(Frozen):
    """Since the monitor was started, in bytes of this process."""

    current_bytes: int
    peak_bytes: int
    average_bytes: float
    trend_bytes_per_s: float
    """Of what is used in all, others included, over the latest readings: straight line by least squares."""
    readings: int


class MemoryMonitor:
    """Reads `meter` at an interval, in a thread of its own; while entered.

    With `fence` it also holds this process's data limit to the room there is: an allocation that would have the kernel kill
    somebody fails instead, and can be recovered from. It is set anew as the room shrinks and grows.
    """

    def __init__(self, meter: Meter, clock: Clock, *, interval_s: float = INTERVAL_S, fence: bool = False) -> None:
        self._meter, self._clock, self._interval_s = meter, clock, interval_s
        self.fenced = fence
        """Whether the fence is in force."""
        self._lock = threading.Lock()
        self._latest: deque[tuple[float, int]] = deque(maxlen=TREND_READINGS)
        self._current = self._peak = self._sum = self._readings = 0
        self._fence = OwnDataLimit()
        self._fence_at: int | None = None
        self._room: Room | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="batchcal-memory", daemon=True)

    def __enter__(self) -> MemoryMonitor:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.fenced:
            self._fence.lift()
        self._meter.close()

    def room(self) -> Room:
        """What the thread read last, while it runs and the limit is the same; else a reading of now.

        What this process holds may be other than then: see `own_bytes`.
        """
        latest = self._latest_room() if self._thread.is_alive() else None
        return self.look() if latest is None else latest

    def own_bytes(self) -> int:
        """What this process holds now."""
        return self._meter.own_bytes()

    def _latest_room(self) -> Room | None:
        """What was read last. None: nothing was, or the limit has changed since."""
        with self._lock:  # a reading may open the meter's files anew
            latest = self._room
            return latest if latest is not None and self._meter.limit_bytes() == latest.limit_bytes else None

    def look(self) -> Room:
        """One reading now; the fence follows it."""
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
        """What was seen until now."""
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
                # A limit that is lowered is seen at once: the reading of it alone costs next to nothing.
                if now < due and self._latest_room() is not None:
                    continue
                room = self.look()
            except OSError:  # the group is gone: nothing is left to be read
                return
            due = now + min((room.limit_bytes - room.used_bytes) / TOUCHED_BYTES_PER_S, SLOWEST_S)

    def _arm(self, room: Room) -> None:
        growth = room.limit_bytes - room.used_bytes - reserve_bytes(room.limit_bytes)
        top = room.own_bytes + growth
        if self._fence_at is not None and abs(top - self._fence_at) < REARM_BYTES:
            return
        self.fenced = self._fence.hold(growth)
        self._fence_at = top


def reserve_bytes(limit_bytes: int) -> int:
    """What is left free of a limit."""
    return max(RESERVE_BYTES, int(limit_bytes * RESERVE_SHARE))


def _slope(readings: list[tuple[float, int]]) -> float:
    if len(readings) < 2:
        return 0.0
    middle = sum(at for at, _ in readings) / len(readings)
    spread = sum((at - middle) ** 2 for at, _ in readings)
    return sum((at - middle) * used for at, used in readings) / spread if spread > 0 else 0.0
