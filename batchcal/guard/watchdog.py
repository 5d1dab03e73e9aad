"""The second line of the fence: looks at the container's and the child's memory every few milliseconds and says when to kill.

RLIMIT_DATA does not see shared memory, page tables or a child that is not armed yet; this does. It must act before the
kernel: where `memory.oom.group` is set, the kernel's kill takes the whole container.
"""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

from batchcal.core.units import MIB, format_bytes
from batchcal.machine.meters import ResidentSampler, descendants, read_status
from batchcal.machine.tree_meter import TreeSampler

INTERVAL_S: Final = 0.005
"""At 1.4-1.9 GiB/s of page touching (2 cores, no THP) a 5 ms watchdog overshoots by 27 MiB at most (15 trials)."""
STILL_S: Final = 0.25
"""A killed torch process gives its memory back within 45-84 ms. Where no group limits us, the kernel's count of free memory then
still leaves out what its processors keep for themselves: 111 MiB, and 8 MiB less each second (Linux 6.18, two processors)."""
FALL_BYTES: Final = MIB
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


class Sampler(Protocol):
    """Reads what a process or a tree holds."""

    def held_bytes(self, now: float) -> int: ...

    def close(self) -> None: ...


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

    def __init__(
        self,
        pid: int,
        group: MemoryGroup,
        *,
        allowed_bytes: int | None,
        shared_bytes: int = 0,
        neighbours: bool = False,
        tree: bool = False,
    ) -> None:
        """`tree`: the descendants of the child are watched, and not the child itself."""
        self._group, self._neighbours = group, neighbours
        self._pid = pid
        self._allowed, self._shared = allowed_bytes, shared_bytes
        self.tree = TreeSampler(pid, neighbours=neighbours) if tree else None
        self._sampler: Sampler | None = self.tree
        with contextlib.suppress(OSError):
            self._sampler = self._sampler or ResidentSampler(pid)
        self.begin_hard_bytes = group.hard_bytes()
        self.begin_swap_bytes = group.swap_bytes()
        self.peak_anonymous_bytes = 0
        """Most anonymous memory of the child itself (what it shares with the zygote included). Of a tree: most that it held, its
        shared memory included."""
        self.peak_hard_bytes = self.begin_hard_bytes
        self.last_anonymous_bytes = 0
        self.last_hard_bytes = self.begin_hard_bytes
        self._least_bytes: int | None = None
        self._fell_at = 0.0
        self.family: set[int] = set()
        """Every descendant of the child that was seen."""
        self.armed = False
        self._next_roll_call = 0.0

    def look(self, now: float) -> str | None:
        """One look. A text: what went too far, and the child must be killed now."""
        if self._sampler is not None:
            self.last_anonymous_bytes = self._sampler.held_bytes(now)
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
            return f"the memory group reached {format_bytes(self.last_hard_bytes)} of {format_bytes(limit)}"
        # The child's own reading has what it shares. Of a child with workers only the group sees the sum, and not what is shared.
        grown = 0 if self._neighbours else self.last_hard_bytes - self.begin_hard_bytes + (self._shared if self.family else 0)
        if self._allowed is not None and not self.armed and max(self.last_anonymous_bytes, grown) > self._allowed:
            reached = format_bytes(max(self.last_anonymous_bytes, grown))
            return f"the child reached {reached} of {format_bytes(self._allowed)} that it may hold"
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

    def is_back(self, now: float, tolerance_bytes: int = 16 * MIB) -> bool:
        """Whether the memory of a killed child is free again: the group is down to the value from before the child (within
        `tolerance_bytes`), or no process of the child holds memory and the group has not fallen for `STILL_S`. With neighbours
        this is unknown: True."""
        held = self._group.hard_bytes()
        if self._neighbours or held <= self.begin_hard_bytes + tolerance_bytes:
            return True
        if self._least_bytes is None or held <= self._least_bytes - FALL_BYTES:
            self._least_bytes, self._fell_at = held, now
        return now - self._fell_at >= STILL_S and all(read_status(pid) is None for pid in (self._pid, *self.family))

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
