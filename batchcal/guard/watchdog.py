"""The second line of the fence: looks at the container's and the child's memory every few milliseconds and says when to kill.

RLIMIT_DATA does not see shared memory, page tables or a child that is not armed yet; this does. It must act before the
kernel: where `memory.oom.group` is set, the kernel's kill takes the whole container.
"""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

from batchcal.core.units import MIB
from batchcal.guard.meters import ResidentSampler, descendants

INTERVAL_S: Final = 0.005
"""At 1.4-1.9 GiB/s of page touching (2 cores, no THP) a 5 ms watchdog overshoots by 27 MiB at most (15 trials)."""
ROLL_CALL_S: Final = 0.03
"""How often the child's descendants are listed: for their names in /dev/shm, for machines without a memory group, and because
each of them has a data limit of its own."""


class MemoryGroup(Protocol):
    """The memory group that binds us, or the machine where none does."""

    @property
    def limit_bytes(self) -> int: ...

    def hard_bytes(self) -> int:
        """Used and not reclaimable: anonymous + shared + kernel, by everybody in the group."""
        ...

    def swap_bytes(self) -> int: ...

    def oom_kills(self) -> int | None:
        """Kernel OOM kills in the group so far. None: unknown."""
        ...


def trip_distance(limit_bytes: int, *, armed: bool) -> int:
    """How far below the limit the watchdog kills, in bytes.

    With RLIMIT_DATA armed, peaks landed 0-11 MB under the fence, so little distance is needed. Unarmed, the distance must cover
    what a child touches between two looks, which come up to 34 ms late on a busy machine: with 45 MiB of 900 one of some 60
    probes was still the kernel's; 64 and 128 MB lost none of 40 each.
    """
    if armed:
        return max(12 * MIB, int(limit_bytes * 0.015))
    return max(64 * MIB, min(150 * MIB, int(limit_bytes * 0.1)))


class Watchdog:
    """Watches one child."""

    def __init__(self, pid: int, group: MemoryGroup, *, allowed_bytes: int | None, neighbours: bool = False) -> None:
        self._group, self._neighbours = group, neighbours
        self._pid = pid
        self._allowed = allowed_bytes
        self._sampler: ResidentSampler | None = None
        with contextlib.suppress(OSError):
            self._sampler = ResidentSampler(pid)
        self.begin_hard_bytes = group.hard_bytes()
        self.begin_swap_bytes = group.swap_bytes()
        self.peak_anonymous_bytes = 0
        """Most anonymous memory of the child itself (what it shares with the zygote included)."""
        self.peak_hard_bytes = self.begin_hard_bytes
        self.last_anonymous_bytes = 0
        self.last_hard_bytes = self.begin_hard_bytes
        self.family: set[int] = set()
        """Every descendant of the child that was seen."""
        self.armed = False
        self._next_roll_call = 0.0

    def look(self, now: float) -> str | None:
        """One look. A text: what went too far, and the child must be killed now."""
        if self._sampler is not None:
            self.last_anonymous_bytes = self._sampler.anonymous_bytes()
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, self.last_anonymous_bytes)
        self.last_hard_bytes = self._group.hard_bytes()
        self.peak_hard_bytes = max(self.peak_hard_bytes, self.last_hard_bytes)
        if now >= self._next_roll_call:
            self._next_roll_call = now + ROLL_CALL_S
            self.family.update(descendants(self._pid))
        limit = self._group.limit_bytes
        # A data limit is that of one process: with workers beside the child nothing but this look bounds their sum.
        trip = limit - trip_distance(limit, armed=self.armed and not self.family)
        if self.last_hard_bytes > trip:
            return f"the memory group reached {self.last_hard_bytes} of {limit} bytes"
        grown = 0 if self._neighbours else self.last_hard_bytes - self.begin_hard_bytes
        if self._allowed is not None and not self.armed and max(self.last_anonymous_bytes, grown) > self._allowed:
            return f"the child reached {max(self.last_anonymous_bytes, grown)} of {self._allowed} allowed bytes"
        return None

    @property
    def near_limit(self) -> float:
        """How near the last look was to what is allowed: 1 is at the limit."""
        limit = self._group.limit_bytes
        shares = [self.last_hard_bytes / (limit - trip_distance(limit, armed=True))]
        if self._allowed:
            shares.append(self.peak_anonymous_bytes / self._allowed)
        return max(shares)

    def swapped_bytes(self) -> int:
        return max(0, self._group.swap_bytes() - self.begin_swap_bytes)

    def is_back(self, tolerance_bytes: int = 16 * MIB) -> bool:
        """Whether the group's memory is down to what it was before the child (within `tolerance_bytes`); with neighbours nobody
        can tell, and it is taken to be."""
        return self._neighbours or self._group.hard_bytes() <= self.begin_hard_bytes + tolerance_bytes

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
