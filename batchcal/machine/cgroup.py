"""The memory that we share with others: the group whose limit binds, read fast enough for every 5 ms; else the machine.

`memory_meter()` finds which of the two it is. Measured on cgroup v1: usage 0.6 us,
hard 7 us a reading; /proc/meminfo 19 us.
"""

from __future__ import annotations

import os
import re
from typing import Final, Literal, NamedTuple

from batchcal.core.values import Frozen
from batchcal.machine.hierarchy import Chain, Version, locate
from batchcal.machine.roots import HERE, Root

UNLIMITED_FROM: Final = 1 << 60
"""v1 writes "no limit" as 2^63 less a page (of 4 or 64 KiB); nobody has an exbibyte."""
_READ_AT_MOST: Final = 1 << 16


class MemoryBound(Frozen):
    """One limit on the way up."""

    bytes: int
    level: str
    """Directory of the group whose usage is held against it."""
    file: str
    """Where it was read."""
    kind: Literal["max", "high", "hidden"]
    """`max`: the kernel kills above it; `high`: it throttles and reclaims above it, which stops a training as well;
    `hidden`: set by a group above the topmost that can be seen."""


def memory_bounds(chain: Chain, root: Root = HERE) -> tuple[MemoryBound, ...]:
    """Every limit that somebody set, our own group's first."""
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
    """v1 says the least limit over all ancestors, those too that a container does not see."""
    if chain.version == "v2":
        return None
    match = re.search(r"^hierarchical_memory_limit (\d+)$", root.read(f"{chain.own}/memory.stat") or "", re.MULTILINE)
    value = finite(int(match.group(1))) if match else None
    if value is None:
        return None
    return MemoryBound(bytes=value, level=chain.top, file=f"{chain.own}/memory.stat hierarchical_memory_limit", kind="hidden")


def binding_bound(bounds: tuple[MemoryBound, ...]) -> MemoryBound | None:
    """The least. Of two equal ones the upper: more is charged against it."""
    return min(reversed(bounds), key=lambda bound: bound.bytes, default=None)


def finite(value: int | None) -> int | None:
    """None for what means "no limit"."""
    return None if value is None or value < 0 or value >= UNLIMITED_FROM else value


class _ControlFile:
    """A control file that stays open. Reading it anew gives its value of now."""

    def __init__(self, root: Root, name: str) -> None:
        self._descriptor = os.open(root.at(name), os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        return os.pread(self._descriptor, _READ_AT_MOST, 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _opened(root: Root, name: str) -> _ControlFile | None:
    """None where it is not there, or there and not for us."""
    try:
        return _ControlFile(root, name)
    except OSError:
        return None


class _KillCounter:
    """The kernel's count of its own kills, from our group up to `upto`. v1 counts a death in the group of the process that
    died and nowhere above it (measured), v2 in all above."""

    def __init__(self, chain: Chain, upto: str, root: Root) -> None:
        name = "memory.oom_control" if chain.version == "v1" else "memory.events"
        reach = chain.levels[: chain.levels.index(upto) + 1]
        levels = reach if chain.version == "v1" else reach[-1:]
        self._files = [file for level in levels if (file := _opened(root, f"{level}/{name}")) is not None]

    def count(self) -> int:
        return sum(_field(file.read(), _OOM_KILL) for file in self._files)

    def close(self) -> None:
        for file in self._files:
            file.close()


_OOM_KILL: Final = re.compile(rb"^oom_kill (\d+)", re.MULTILINE)
_SWAP: Final = re.compile(rb"^total_swap (\d+)", re.MULTILINE)
_FILE_PAGES: Final[dict[Version, re.Pattern[bytes]]] = {
    # v1 has the lines twice; those without total_ leave out the groups below.
    "v1": re.compile(rb"^total_(?:in)?active_file (\d+)", re.MULTILINE),
    "v2": re.compile(rb"^(?:in)?active_file (\d+)", re.MULTILINE),
}


def _field(text: bytes, pattern: re.Pattern[bytes]) -> int:
    match = pattern.search(text)
    return int(match.group(1)) if match else 0


def _limit_in(text: bytes) -> int | None:
    """v2 writes "max" where there is none."""
    word = text.strip()
    return finite(int(word)) if word.isdigit() else None


class MemoryGroup:
    """The control group whose limit binds. Holds its files open; close it.

    Raises:
        OSError: the group has no readable usage or statistics, or (at a reading) is gone.
    """

    def __init__(self, chain: Chain, bound: MemoryBound, root: Root = HERE) -> None:
        self.version: Literal["v1", "v2", "none"] = chain.version
        self.directory = bound.level
        self.limit_bytes = bound.bytes
        self._file_pages = _FILE_PAGES[chain.version]
        self._open: list[_ControlFile | _KillCounter] = []
        v1 = chain.version == "v1"
        try:
            self._usage = self._file(root, "memory.usage_in_bytes" if v1 else "memory.current")
            self._stat = self._file(root, "memory.stat")
            # Of a group further up that is not seen only its number is known.
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
        """The limit of this group as it is set now; that of another group may have come to bind instead."""
        found = [value for file in self._limits if (value := _limit_in(file.read())) is not None]
        return min(found, default=self.limit_bytes)

    def usage_bytes(self) -> int:
        return int(self._usage.read())

    def hard_bytes(self) -> int:
        # Usage first: near the limit the kernel drops file pages, and the difference then errs upwards.
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
    """The same answers for the machine as a whole, where no group binds. From /proc/meminfo; asked otherwise where it is none.

    `at_most_bytes`: a limit that holds all the same, of a group that does not say what it uses.
    """

    version: Literal["v1", "v2", "none"] = "none"

    def __init__(self, chain: Chain | None = None, root: Root = HERE, *, at_most_bytes: int | None = None) -> None:
        self.directory = chain.own if chain else ""
        self._meminfo = _opened(root, "/proc/meminfo")
        self._kills = _KillCounter(chain, chain.own, root) if chain else None
        # Without groups of our own there is only the counter of the whole machine.
        self._vmstat = _opened(root, "/proc/vmstat") if not chain else None
        first = self._read()
        self.total_bytes, self.learned_from = first.total, first.learned_from
        self.limit_bytes = self.total_bytes if at_most_bytes is None else min(at_most_bytes, self.total_bytes)

    def _read(self) -> _Reading:
        values = {} if self._meminfo is None else {key: int(kib) * 1024 for key, kib in _MEMINFO.findall(self._meminfo.read())}
        if b"MemTotal" not in values:
            return _asked()
        total, free = values[b"MemTotal"], values.get(b"MemFree", 0)
        available = values.get(b"MemAvailable", free + values.get(b"Cached", 0))
        swap = values.get(b"SwapTotal", 0)
        return _Reading(total, available, free, swap, swap - values.get(b"SwapFree", 0), "/proc/meminfo MemTotal")

    def limit_now(self) -> int:
        """A machine's memory stays what it is."""
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
        """What the kernel says may be had without swapping."""
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


def _asked() -> _Reading:
    """What the system says where /proc/meminfo does not: psutil off Linux, a system call in a root without /proc."""
    import psutil  # 12 ms

    try:
        memory, paged = psutil.virtual_memory(), psutil.swap_memory()
    except (OSError, KeyError):  # on Linux it reads the same file
        page = os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES") * page
        return _Reading(os.sysconf("SC_PHYS_PAGES") * page, free, free, 0, 0, "sysconf")
    return _Reading(memory.total, memory.available, memory.free, paged.total, paged.used, "psutil")


_MEMINFO: Final = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)


def memory_meter(root: Root = HERE) -> MemoryGroup | MachineMemory:
    """The meter of the memory that binds this process: a group's, or the machine's where no group limits more than that."""
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
