"""Memory that is shared with other processes: of the binding control group, read fast enough for every 5 ms, or of the machine.

`memory_meter()` selects one of the two. Measured on cgroup v1, per reading: usage 0.6 us, hard 7 us; /proc/meminfo 19 us.
"""

from __future__ import annotations

import os
import re
from typing import Final, Literal, NamedTuple

from batchcal.core.values import Frozen
from batchcal.machine.hierarchy import Chain, Version, locate
from batchcal.machine.roots import THIS_MACHINE, Root

UNLIMITED_FROM: Final = 1 << 60
"""v1 writes "no limit" as 2^63 minus a page (of 4 or 64 KiB). No machine has an exbibyte."""
_READ_AT_MOST: Final = 1 << 16


class MemoryBound(Frozen):
    """One memory limit of the group of this process or of a group above it."""

    bytes: int
    level: str
    """Directory of the group. Its usage is compared with the limit."""
    file: str
    """File that contains the limit."""
    kind: Literal["max", "high", "hidden"]
    """`max`: the kernel kills above it; `high`: the kernel throttles and reclaims above it, which stops a training, too;
    `hidden`: set by a group above the topmost visible group."""


def memory_bounds(chain: Chain, root: Root = THIS_MACHINE) -> tuple[MemoryBound, ...]:
    """All limits that are set, those of the group of this process first."""
    bounds: list[MemoryBound] = []
    for level in chain.levels:
        names: dict[str, Literal["max", "high"]] = (
            {"memory.limit_in_bytes": "max"} if chain.version == "v1" else {"memory.max": "max", "memory.high": "high"}
        )
        for name, kind in names.items():
            value = finite(root.number(f"{level}/{name}"))
            if value is not None:
                bounds.append(MemoryBound(bytes=value, level=level, file=f"{level}/{name}", kind=kind))
    hidden = _hidden_bound(chain, root)
    return (*bounds, hidden) if hidden and all(bound.bytes > hidden.bytes for bound in bounds) else tuple(bounds)


def _hidden_bound(chain: Chain, root: Root) -> MemoryBound | None:
    """v1 reports the smallest limit of all ancestors, including those that are not visible in a container."""
    if chain.version == "v2":
        return None
    match = re.search(r"^hierarchical_memory_limit (\d+)$", root.read(f"{chain.own}/memory.stat") or "", re.MULTILINE)
    value = finite(int(match.group(1))) if match else None
    if value is None:
        return None
    return MemoryBound(bytes=value, level=chain.top, file=f"{chain.own}/memory.stat hierarchical_memory_limit", kind="hidden")


def binding_bound(bounds: tuple[MemoryBound, ...]) -> MemoryBound | None:
    """The smallest bound. Of two equal bounds, the upper one: more memory is charged to it."""
    return min(reversed(bounds), key=lambda bound: bound.bytes, default=None)


def finite(value: int | None) -> int | None:
    """`value`, or None if it means "no limit"."""
    return None if value is None or value < 0 or value >= UNLIMITED_FROM else value


class _ControlFile:
    """A control file that stays open. Each read returns the current value."""

    def __init__(self, root: Root, name: str) -> None:
        self._descriptor = os.open(root.at(name), os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        return os.pread(self._descriptor, _READ_AT_MOST, 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _open_control_file(root: Root, name: str) -> _ControlFile | None:
    """Open a control file. None: it does not exist, or this process must not read it."""
    try:
        return _ControlFile(root, name)
    except OSError:
        return None


class _KillCounter:
    """Number of kernel OOM kills, from the group of this process up to `upto`. v1 counts a death only in the group of the process
    that died and not in the groups above (measured), v2 counts it in all groups above."""

    def __init__(self, chain: Chain, upto: str, root: Root) -> None:
        name = "memory.oom_control" if chain.version == "v1" else "memory.events"
        reach = chain.levels[: chain.levels.index(upto) + 1]
        levels = reach if chain.version == "v1" else reach[-1:]
        self._files = [file for level in levels if (file := _open_control_file(root, f"{level}/{name}")) is not None]

    def count(self) -> int:
        return sum(_field(file.read(), _OOM_KILL) for file in self._files)

    def close(self) -> None:
        for file in self._files:
            file.close()


_OOM_KILL: Final = re.compile(rb"^oom_kill (\d+)", re.MULTILINE)
_SWAP: Final = re.compile(rb"^total_swap (\d+)", re.MULTILINE)
_FILE_PAGES: Final[dict[Version, re.Pattern[bytes]]] = {
    # v1 has the lines twice. Those without total_ exclude the groups below.
    "v1": re.compile(rb"^total_(?:in)?active_file (\d+)", re.MULTILINE),
    "v2": re.compile(rb"^(?:in)?active_file (\d+)", re.MULTILINE),
}


def _field(text: bytes, pattern: re.Pattern[bytes]) -> int:
    match = pattern.search(text)
    return int(match.group(1)) if match else 0


def _limit_in(text: bytes) -> int | None:
    """Limit in a control file. v2 writes "max" if there is none."""
    word = text.strip()
    return finite(int(word)) if word.isdigit() else None


class MemoryGroup:
    """The control group with the binding limit. It keeps its files open and must be closed.

    Raises:
        OSError: the group has no readable usage or statistics, or (at a reading) is gone.
    """

    def __init__(self, chain: Chain, bound: MemoryBound, root: Root = THIS_MACHINE) -> None:
        self.version: Literal["v1", "v2", "none"] = chain.version
        self.directory = bound.level
        self.limit_bytes = bound.bytes
        self._file_pages = _FILE_PAGES[chain.version]
        self._open: list[_ControlFile | _KillCounter] = []
        v1 = chain.version == "v1"
        try:
            self._usage = self._file(root, "memory.usage_in_bytes" if v1 else "memory.current")
            self._stat = self._file(root, "memory.stat")
            # For an invisible group further up, only the number of its limit is known.
            self._limits = [
                file
                for name in (("memory.limit_in_bytes",) if v1 else ("memory.max", "memory.high"))
                if bound.kind != "hidden" and (file := self._optional(root, name)) is not None
            ]
            swap = f"{bound.level}/memory.swap.current"
            self._swap = self._file(root, "memory.swap.current") if not v1 and root.exists(swap) else None
            self._kills = _KillCounter(chain, bound.level, root)
            self._open.append(self._kills)
        except OSError:
            self.close()
            raise

    def _file(self, root: Root, name: str) -> _ControlFile:
        file = _ControlFile(root, f"{self.directory}/{name}")
        self._open.append(file)
        return file

    def _optional(self, root: Root, name: str) -> _ControlFile | None:
        return self._file(root, name) if root.exists(f"{self.directory}/{name}") else None

    def limit_now(self) -> int:
        """Current limit of this group. Another group may have become the binding one."""
        limits = [value for file in self._limits if (value := _limit_in(file.read())) is not None]
        return min(limits, default=self.limit_bytes)

    def usage_bytes(self) -> int:
        return int(self._usage.read())

    def hard_bytes(self) -> int:
        # Usage first: near the limit the kernel drops file pages, and the difference is then too large, not too small.
        usage = self.usage_bytes()
        return max(usage - self.reclaimable_bytes(), 0)

    def reclaimable_bytes(self) -> int:
        return sum(int(pages) for pages in self._file_pages.findall(self._stat.read()))

    def swap_bytes(self) -> int:
        if self._swap is not None:
            return int(self._swap.read())
        return _field(self._stat.read(), _SWAP)

    def oom_kills(self) -> int:
        return self._kills.count()

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


class _Reading(NamedTuple):
    """The machine's memory at one moment, in bytes."""

    total: int
    available: int
    free: int
    swap_total: int
    swapped: int
    learned_from: str


class MachineMemory:
    """The same readings for the complete machine, if no group binds. From /proc/meminfo, or another source if there is none.

    `at_most_bytes`: limit of a group that still applies although the usage of the group is not readable.
    """

    version: Literal["v1", "v2", "none"] = "none"

    def __init__(self, chain: Chain | None = None, root: Root = THIS_MACHINE, *, at_most_bytes: int | None = None) -> None:
        self.directory = chain.own if chain else ""
        self._meminfo = _open_control_file(root, "/proc/meminfo")
        self._kills = _KillCounter(chain, chain.own, root) if chain else None
        # Without a group of this process there is only the counter of the complete machine.
        self._vmstat = _open_control_file(root, "/proc/vmstat") if not chain else None
        first = self._read()
        self.total_bytes, self.learned_from = first.total, first.learned_from
        self.limit_bytes = self.total_bytes if at_most_bytes is None else min(at_most_bytes, self.total_bytes)

    def _read(self) -> _Reading:
        values = {} if self._meminfo is None else {key: int(kib) * 1024 for key, kib in _MEMINFO.findall(self._meminfo.read())}
        if b"MemTotal" not in values:
            return _system_reading()
        total, free = values[b"MemTotal"], values.get(b"MemFree", 0)
        available = values.get(b"MemAvailable", free + values.get(b"Cached", 0))
        swap = values.get(b"SwapTotal", 0)
        return _Reading(total, available, free, swap, swap - values.get(b"SwapFree", 0), "/proc/meminfo MemTotal")

    def limit_now(self) -> int:
        """Limit, bytes. The memory of a machine does not change."""
        return self.limit_bytes

    def usage_bytes(self) -> int:
        now = self._read()
        return now.total - now.free

    def hard_bytes(self) -> int:
        now = self._read()
        return max(now.total - now.available, 0)

    def reclaimable_bytes(self) -> int:
        now = self._read()
        return max(now.available - now.free, 0)

    def available_bytes(self) -> int:
        """Memory that is available without swapping, as reported by the kernel, bytes."""
        return self._read().available

    def swap_bytes(self) -> int:
        return self._read().swapped

    def swap_total_bytes(self) -> int:
        return self._read().swap_total

    def oom_kills(self) -> int:
        if self._kills is not None:
            return self._kills.count()
        return _field(self._vmstat.read(), _OOM_KILL) if self._vmstat else 0

    def close(self) -> None:
        for file in (self._meminfo, self._kills, self._vmstat):
            if file is not None:
                file.close()
        self._meminfo = self._kills = self._vmstat = None


def _system_reading() -> _Reading:
    """Reading without /proc/meminfo: psutil on other systems than Linux, a system call in a root without /proc."""
    import psutil  # 12 ms

    try:
        memory, paged = psutil.virtual_memory(), psutil.swap_memory()
    except (OSError, KeyError):  # on Linux psutil reads the same file
        page = os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES") * page
        return _Reading(os.sysconf("SC_PHYS_PAGES") * page, free, free, 0, 0, "sysconf")
    return _Reading(memory.total, memory.available, memory.free, paged.total, paged.used, "psutil")


_MEMINFO: Final = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)


def memory_meter(root: Root = THIS_MACHINE) -> MemoryGroup | MachineMemory:
    """Return the meter of the memory that limits this process: of a group, or of the machine if no group has a smaller limit."""
    chain = locate("memory", root)
    machine = MachineMemory(chain, root)
    bound = binding_bound(memory_bounds(chain, root)) if chain else None
    if chain is None or bound is None or bound.bytes >= machine.total_bytes:
        return machine
    machine.close()
    try:
        return MemoryGroup(chain, bound, root)
    except OSError:
        return MachineMemory(chain, root, at_most_bytes=bound.bytes)
