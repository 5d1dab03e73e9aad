"""Resource limits of this process: open files, processes and threads, address space."""

from __future__ import annotations

import re
from typing import Final

from batchcal.core.values import Frozen
from batchcal.detect.bounds import Bound, least_count
from batchcal.detect.environment import Fact
from batchcal.machine.hierarchy import locate
from batchcal.machine.roots import Root

_ROWS: Final = {
    "Max open files": ("open_files", "RLIMIT_NOFILE"),
    "Max processes": ("processes", "RLIMIT_NPROC"),
    "Max data size": ("data_bytes", "RLIMIT_DATA"),
    "Max address space": ("address_space_bytes", "RLIMIT_AS"),
}
"""Rows of /proc/self/limits: our field, and the name for the system call."""
_ASSUMED_OPEN_FILES: Final = 1024
"""Assumed limit of open files if none can be read: the common value of POSIX systems."""


class Limits(Frozen):
    """The soft limits; None: unlimited or unknown."""

    open_files: int | None = None
    processes: int | None = None
    data_bytes: int | None = None
    address_space_bytes: int | None = None


def read_limits(root: Root) -> Limits:
    """Read the limits from /proc/self/limits, or those of this process with getrlimit if that file is missing."""
    text = root.read("/proc/self/limits")
    if text is None:
        return _read_with_getrlimit() if root.real else Limits()
    values: dict[str, int] = {}
    for row, (field, _) in _ROWS.items():
        match = re.search(rf"^{row}\s+(\d+)\s", text, re.MULTILINE)
        if match:
            values[field] = int(match.group(1))
    return Limits(**values)


def _read_with_getrlimit() -> Limits:
    try:
        import resource
    except ImportError:  # Windows
        return Limits()
    values: dict[str, int] = {}
    for field, name in _ROWS.values():
        number = getattr(resource, name, None)
        if isinstance(number, int):
            soft, _ = resource.getrlimit(number)
            if soft != resource.RLIM_INFINITY:
                values[field] = soft
    return Limits(**values)


def open_files(root: Root, limits: Limits, notes: list[str]) -> Fact[int]:
    """Return the number of files that this process may have open at once."""
    bounds: list[Bound] = []
    if limits.open_files is not None:
        bounds.append(Bound(value=limits.open_files, learned_from="RLIMIT_NOFILE", because="opening more files fails"))
    most = root.number("/proc/sys/fs/nr_open")
    if most is not None:
        bounds.append(Bound(value=most, learned_from="/proc/sys/fs/nr_open", because="the kernel allows no more for any process"))
    if not bounds:
        notes.append(f"the limit of open files could not be read: {_ASSUMED_OPEN_FILES} is assumed")
        bounds.append(Bound(value=_ASSUMED_OPEN_FILES, learned_from="assumed", because="no limit could be read"))
    return least_count(bounds, lambda count: f"{count:.0f}")


def pids(root: Root, limits: Limits) -> Fact[int] | None:
    """Return the allowed number of processes and threads. None: unlimited."""
    chain = locate("pids", root)
    bounds: list[Bound] = []
    for level in reversed(chain.levels) if chain else ():
        most = root.number(f"{level}/pids.max")
        if most is not None:
            because = "above it, the group cannot start processes or threads"
            bounds.append(Bound(value=most, learned_from=f"{level}/pids.max", because=because))
    if limits.processes is not None:
        because = "above it, the user cannot start processes or threads"
        bounds.append(Bound(value=limits.processes, learned_from="RLIMIT_NPROC", because=because))
    for name in ("/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"):
        most = root.number(name)
        if most is not None:
            bounds.append(Bound(value=most, learned_from=name, because="the maximum of the machine"))
    return least_count(bounds, lambda count: f"{count:.0f}") if bounds else None
