"""Second layer of the fence: checks the memory of the container and the child every few milliseconds and decides when to kill.

RLIMIT_DATA does not cover shared memory, page tables or a child that is not armed yet; the watchdog does. It must act before
the kernel: if `memory.oom.group` is set, the kernel kills the complete container.
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
"""A killed torch process releases its memory within 45-84 ms. If no group limits this process, the kernel's count of free
memory then still excludes what its processors keep: 111 MiB, and 8 MiB less each second (Linux 6.18, two processors)."""
FALL_BYTES: Final = MIB
ROLL_CALL_S: Final = 0.03
"""Interval of listing the child's descendants, seconds. The list is needed for their names in /dev/shm, for machines without a
memory group, and because each of them has its own data limit."""


class GroupMeter(Protocol):
    """The memory group that limits this process, or the machine if no group does."""

    @property
    def limit_bytes(self) -> int: ...

    def hard_bytes(self) -> int:
        """Memory in use that is not reclaimable, bytes: anonymous + shared + kernel, of all processes in the group."""
        ...

    def swap_bytes(self) -> int: ...

    def oom_kills(self) -> int | None:
        """Kernel OOM kills in the group so far. None: unknown."""
        ...


class Sampler(Protocol):
    """Reads the memory of a process or a tree."""

    def used_bytes(self, now: float) -> int: ...

    def close(self) -> None: ...


def trip_distance(limit_bytes: int, *, armed: bool) -> int:
    """Distance below the limit at which the watchdog kills, bytes.

    With RLIMIT_DATA armed, peaks were 0-11 MB below the fence, so a small distance is enough. Unarmed, the distance must cover
    the memory that a child touches between two checks, which are up to 34 ms late on a busy machine. With 45 MiB of 900, the
    kernel still killed one of about 60 probes. With 64 and 128 MB, it killed none of 40 each.
    """
    if armed:
        return max(12 * MIB, int(limit_bytes * 0.015))
    return max(64 * MIB, min(150 * MIB, int(limit_bytes * 0.1)))


class Watchdog:
    """Watches one child."""

    def __init__(
        self,
        pid: int,
        group: GroupMeter,
        *,
        allowed_bytes: int | None,
        shared_bytes: int = 0,
        neighbours: bool = False,
        tree: bool = False,
    ) -> None:
        """`tree`: watch the descendants of the child, and not the child itself."""
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
        """Peak anonymous memory of the child itself, including memory shared with the zygote. For a tree: its peak memory,
        including its shared memory."""
        self.peak_hard_bytes = self.begin_hard_bytes
        self.last_anonymous_bytes = 0
        self.last_hard_bytes = self.begin_hard_bytes
        self._least_bytes: int | None = None
        self._fell_at = 0.0
        self.family: set[int] = set()
        """All descendants of the child that were listed so far."""
        self.armed = False
        self._next_roll_call = 0.0

    def look(self, now: float) -> str | None:
        """Check the memory once. Return the reason if the child must be killed now, None if not."""
        if self._sampler is not None:
            self.last_anonymous_bytes = self._sampler.used_bytes(now)
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, self.last_anonymous_bytes)
        self.last_hard_bytes = self._group.hard_bytes()
        self.peak_hard_bytes = max(self.peak_hard_bytes, self.last_hard_bytes)
        if now >= self._next_roll_call:
            self._next_roll_call = now + ROLL_CALL_S
            self.family.update(descendants(self._pid))
        limit = self._group.limit_bytes
        # A data limit applies to one process. If the child has workers, only this check limits their sum.
        trip = limit - trip_distance(limit, armed=self.armed and not self.family)
        if self.last_hard_bytes > trip:
            return f"the container or machine used {format_bytes(self.last_hard_bytes)} of {format_bytes(limit)}"
        # The child's own reading includes shared memory. With workers only the group has the sum, and it excludes shared memory.
        # The sampler of a tree reads all of its processes, so that growth of the group beyond it belongs to others.
        is_read = self._neighbours or self.tree is not None
        grown = 0 if is_read else self.last_hard_bytes - self.begin_hard_bytes + (self._shared if self.family else 0)
        if self._allowed is not None and not self.armed and max(self.last_anonymous_bytes, grown) > self._allowed:
            used = format_bytes(max(self.last_anonymous_bytes, grown))
            return f"the process used {used}; it may use {format_bytes(self._allowed)}"
        return None

    @property
    def near_limit(self) -> float:
        """Memory at the last check as a share of the allowed memory: 1 is at the limit."""
        limit = self._group.limit_bytes
        shares = [self.last_hard_bytes / (limit - trip_distance(limit, armed=True))]
        if self._allowed:
            shares.append(self.peak_anonymous_bytes / self._allowed)
        return max(shares)

    def swapped_bytes(self) -> int:
        return max(0, self._group.swap_bytes() - self.begin_swap_bytes)

    def is_back(self, now: float, tolerance_bytes: int = 16 * MIB) -> bool:
        """Return True if the memory of a killed child is free again: the group is down to its value before the child (within
        `tolerance_bytes`), or no process of the child holds memory and the group has not fallen for `STILL_S`. With neighbours
        this is unknown: True."""
        used_bytes = self._group.hard_bytes()
        if self._neighbours or used_bytes <= self.begin_hard_bytes + tolerance_bytes:
            return True
        if self._least_bytes is None or used_bytes <= self._least_bytes - FALL_BYTES:
            self._least_bytes, self._fell_at = used_bytes, now
        return now - self._fell_at >= STILL_S and all(read_status(pid) is None for pid in (self._pid, *self.family))

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
