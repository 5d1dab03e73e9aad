"""Total memory of a process tree."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from batchcal.core.values import Frozen
from batchcal.machine.meters import ResidentSampler, descendants, read_status

MEMBERS_S: Final = 0.03
"""Interval of listing the members, seconds. A listing takes about 0.1 ms per process."""
SHARE_OF_TIME: Final = 0.02
"""Share of the time for reading what the members share. A reading takes about 30 ms per GiB, in the process that reads."""
SHARED_MEMORY: Final = "/dev/shm"


class ProcessShare(Frozen):
    """Memory of one process, bytes. A page that n processes map counts as 1/n."""

    anonymous_bytes: int = 0
    shared_bytes: int = 0
    """Shared memory: tensors between DataLoader workers and their process, segments of a collective."""
    mapped_shared_bytes: int = 0
    """Shared memory that the process maps, regardless of other processes that map it."""


class TreeSampler:
    """Reads the total memory of the descendants of a process, without the process itself.

    Resident anonymous memory is read from every member at each check, shared memory at each listing. Pages that two members map
    are then counted twice. The kernel's proportional shares, which are read less often, show this amount. If a DataLoader worker
    has sent a tensor that is not read yet, no process maps it: the growth of /dev/shm shows it.
    """

    def __init__(self, root: int, *, neighbours: bool = False) -> None:
        """`neighbours`: other processes use /dev/shm at the same time, so its content does not measure this tree."""
        self._root = root
        self._initial_bytes = None if neighbours else shared_memory_bytes()
        self._members: dict[int, ResidentSampler] = {}
        self._listed_at = self._shares_at = 0.0
        self._twice_bytes = 0
        """Anonymous memory that the sum counts more than once, bytes."""
        self._mapped: dict[int, int] = {}
        """Shared memory that each member maps, bytes."""
        self._share: float | None = None
        """Shared memory of all members / sum of their mapped shared memory. None: none was mapped when the shares were read."""
        self._start_times: dict[int, str] = {}

    def used_bytes(self, now: float) -> int:
        """Anonymous and shared memory of all members, bytes, each page once. `now`: seconds of a monotonic clock."""
        if now - self._listed_at >= MEMBERS_S:
            self._listed_at = now
            self._list(now)
        if now >= self._shares_at:
            start_s = time.monotonic()
            self._read_shares()
            self._shares_at = now + (time.monotonic() - start_s) / SHARE_OF_TIME
        return max(0, self._sum() - self._twice_bytes) + self._shared()

    def has(self, process: int) -> bool:
        """Return True if `process` is a member now."""
        return process > 0 and process in descendants(self._root)

    @property
    def start_times(self) -> Mapping[int, str]:
        """All members so far with their `started_at`, since process ids are reused."""
        return self._start_times

    def close(self) -> None:
        for sampler in self._members.values():
            sampler.close()
        self._members.clear()

    def _list(self, now: float) -> None:
        current = set(descendants(self._root))
        for new in current - self._start_times.keys():
            self._start_times[new] = started_at(new)
        for ended in self._members.keys() - current:
            self._members.pop(ended).close()
        for new in current - self._members.keys():
            with contextlib.suppress(OSError):
                self._members[new] = ResidentSampler(new)
                self._shares_at = now  # a fork shares all memory of its parent
        self._mapped = {pid: status.shared_bytes for pid in self._members if (status := read_status(pid)) is not None}
        if self._share is None and any(self._mapped.values()):
            self._shares_at = now

    def _sum(self) -> int:
        return sum(sampler.anonymous_bytes() for sampler in self._members.values())

    def _shared(self) -> int:
        total, now = sum(self._mapped.values()), shared_memory_bytes()
        mapped = round(total * self._share) if self._share is not None else max(self._mapped.values(), default=0)
        return mapped if now is None or self._initial_bytes is None else max(mapped, now - self._initial_bytes)

    def _read_shares(self) -> None:
        twice = shared = mapped = 0
        for pid, sampler in self._members.items():
            share = proportional_share(pid)
            if share is not None:
                twice += sampler.anonymous_bytes() - share.anonymous_bytes
                shared += share.shared_bytes
                mapped += share.mapped_shared_bytes
        self._twice_bytes = max(0, twice)
        self._share = shared / mapped if mapped else None


def proportional_share(pid: int) -> ProcessShare | None:
    """Return the share of `pid` in the memory that it maps. None: it is gone, or the kernel (before 5.3) does not report it."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    fields = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in text.splitlines()[1:])}
    if "Pss_Anon" not in fields:
        return None
    status = read_status(pid)
    return ProcessShare(
        anonymous_bytes=fields["Pss_Anon"],
        shared_bytes=fields.get("Pss_Shmem", 0),
        mapped_shared_bytes=0 if status is None else status.shared_bytes,
    )


def shared_memory_bytes() -> int | None:
    """Size of all files in /dev/shm, bytes, including files without a name. None: the system has no /dev/shm."""
    try:
        stats = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return (stats.f_blocks - stats.f_bfree) * stats.f_frsize


def started_at(pid: int) -> str:
    """Start time of `pid`, in the kernel's ticks since boot. Empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_zombie(pid: int) -> bool:
    """Return True if `pid` has ended and waits to be reaped, or is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True
