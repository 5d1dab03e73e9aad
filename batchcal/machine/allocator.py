"""Allocator policies: how host memory is handed out, which on a CPU decides both the speed and the peak of a training.

glibc returns big blocks to the kernel at every step and pays for it in page faults. A policy is part of a plan and of the
fingerprint; most are read when a process starts, so each has a process environment of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from batchcal.core.errors import UsageError
from batchcal.core.suggest import closest
from batchcal.core.units import GIB, MIB
from batchcal.core.values import Record
from batchcal.machine.linker import find_library, is_loadable
from batchcal.machine.roots import Root

if TYPE_CHECKING:
    import ctypes

PolicyName = str
"""`default`, `thp`, `retain`, `tcmalloc`, `jemalloc`, `mimalloc`, or the path of a shared library to preload."""

AUTO: Final = "auto"
"""No policy: the fastest of those that this system has is to be found."""
BUILT_IN: Final = ("default", "thp", "retain")
LIBRARIES: Final[dict[str, tuple[str, ...]]] = {
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so", "libtcmalloc.so"),
    "jemalloc": ("libjemalloc.so.2", "libjemalloc.so"),
    "mimalloc": ("libmimalloc.so.2", "libmimalloc.so.3", "libmimalloc.so"),
}
PACKAGES: Final[dict[str, str]] = {
    "tcmalloc": "libtcmalloc-minimal4",
    "jemalloc": "libjemalloc2",
    "mimalloc": "libmimalloc2.0",
}
"""The Debian packages that bring them; Fedora and conda call the first gperftools."""

RETAIN_MMAP_THRESHOLD: Final = GIB
"""Blocks under this come from the heap, which keeps them, and not from a mapping of their own, which is given back at once.
Measured (glibc 2.36): five rounds of 400 MiB take 77 thousand page faults where the default takes 512 thousand, alike by mallopt
and by environment. A block above it is still given back."""
RETAIN_TRIM_THRESHOLD: Final = 2**31 - 1
"""The heap gives nothing back under this much free memory at its end."""
_OLDER_MMAP_THRESHOLD: Final = 32 * MIB
"""The most that a glibc with the check `value <= HEAP_MAX_SIZE / 2` accepts; the environment's larger value is ignored there."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

THP_VARIABLE: Final = "THP_MEM_ALLOC_ENABLE"
_RETAIN_VARIABLES: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(RETAIN_MMAP_THRESHOLD),
    "MALLOC_TRIM_THRESHOLD_": str(RETAIN_TRIM_THRESHOLD),
}
_THP_SWITCH: Final = "/sys/kernel/mm/transparent_hugepage/enabled"


class AllocatorPolicy(Record):
    """A policy with what puts it into force."""

    name: PolicyName
    kind: Literal["none", "environment", "mallopt", "preload"]
    library: str = ""
    """Absolute path of the preloaded library; empty for the policies that need none."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Variables to set, given the environment `base` (an LD_PRELOAD that is there is kept behind ours)."""
        match self.kind:
            case "none":
                return {}
            case "environment":
                return {THP_VARIABLE: "1"}
            case "mallopt":
                return dict(_RETAIN_VARIABLES)
            case "preload":
                others = [entry for entry in preloaded(base) if family(entry) is None and entry != self.library]
                return {"LD_PRELOAD": ":".join((self.library, *others))}

    def process_environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a process under this policy: `base` less what another policy put there, plus ours."""
        return {**without_policy(base), **self.environment(without_policy(base))}


def maps_large_blocks(name: PolicyName) -> bool:
    """Whether blocks of 32 MiB and more are mapped one by one under the policy: glibc, unless it was told otherwise."""
    told = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return name in {"default", "thp"} and platform.libc_ver()[0] == "glibc" and not told


def without_policy(base: Mapping[str, str]) -> dict[str, str]:
    """`base` with every policy's variables taken out; what else is preloaded stays."""
    mine = {THP_VARIABLE, *_RETAIN_VARIABLES}
    environment = {name: value for name, value in base.items() if name not in mine}
    if "LD_PRELOAD" in environment:
        others = [entry for entry in preloaded(base) if family(entry) is None]
        environment["LD_PRELOAD"] = ":".join(others)
        if not others:
            del environment["LD_PRELOAD"]
    return environment


def preloaded(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The entries of LD_PRELOAD, which may be parted by blanks or colons."""
    return tuple(entry for entry in environ.get("LD_PRELOAD", "").replace(":", " ").split() if entry)


def family(library: str) -> PolicyName | None:
    """`tcmalloc`, `jemalloc` or `mimalloc` by the file's name; None for any other library."""
    name = Path(library).name
    return next((known for known in LIBRARIES if name.startswith(f"lib{known}")), None)


def resolve(name: PolicyName, *, root: Path = Path("/")) -> AllocatorPolicy:
    """The policy called `name`, its library looked up in the linker's cache.

    Raises:
        UsageError: unknown name, or a library that this system does not have (says which package brings it).
    """
    files = Root(root)
    if name == "default":
        return AllocatorPolicy(name=name, kind="none")
    if name == "thp":
        if not _huge_pages(files):
            raise UsageError(
                "the allocator policy thp needs transparent huge pages, and this kernel gives none",
                known=f"{_THP_SWITCH} holds {files.read(_THP_SWITCH) or 'nothing'}",
                try_="--allocator default, or as root: echo madvise > " + _THP_SWITCH,
            )
        return AllocatorPolicy(name=name, kind="environment")
    if name == "retain":
        if not _has_mallopt():
            raise UsageError(
                "the allocator policy retain needs glibc",
                known="this system's C library has no mallopt",
                try_="--allocator default",
            )
        return AllocatorPolicy(name=name, kind="mallopt")
    if name in LIBRARIES:
        return _known_library(name, files)
    if "/" in name:
        return _given_library(name, files)
    choices = (AUTO, *BUILT_IN, *LIBRARIES)
    close = closest(name, choices)
    raise UsageError(
        f"there is no allocator policy {name!r}" + (f" (did you mean {close}?)" if close else ""),
        known=f"valid values: {', '.join(choices)}, or the path of a library",
        try_=f"--allocator {close or AUTO}",
    )


def _known_library(name: PolicyName, files: Root) -> AllocatorPolicy:
    library = find_library(LIBRARIES[name], files)
    if not library:
        raise UsageError(
            f"the allocator {name} is not installed",
            known=f"neither the linker's cache nor the usual directories have {LIBRARIES[name][0]}",
            try_=f"apt-get install {PACKAGES[name]}, or --allocator /path/to/{LIBRARIES[name][0]}",
        )
    return AllocatorPolicy(name=name, kind="preload", library=library)


def _given_library(name: PolicyName, files: Root) -> AllocatorPolicy:
    library = str(Path(name).expanduser().absolute())  # not resolved: the name of a link is what the linker is told
    if any(character in library for character in " :"):
        raise UsageError(
            f"the allocator library {library!r} cannot be preloaded",
            known="LD_PRELOAD separates its entries by blanks and colons",
            try_="--allocator with a path without blanks and colons, such as a link to the library",
        )
    if not is_loadable(library, files):
        raise UsageError(
            f"the allocator library {library} cannot be loaded",
            known="there is no such file, or it is not a shared library for this machine",
            try_="--allocator auto, or the path of a library that exists",
        )
    known = family(library)
    installed = find_library(LIBRARIES[known], files) if known else ""
    if known and installed and _same_file(files.at(installed), files.at(library)):
        return AllocatorPolicy(name=known, kind="preload", library=installed)  # one library, one name
    return AllocatorPolicy(name=library, kind="preload", library=library)


def available(*, root: Path = Path("/")) -> tuple[AllocatorPolicy, ...]:
    """Every policy that this system can put into force, `default` first."""
    policies: list[AllocatorPolicy] = []
    for name in (*BUILT_IN, *LIBRARIES):
        with contextlib.suppress(UsageError):
            policies.append(resolve(name, root=root))
    return tuple(policies)


def library_digest(policy: AllocatorPolicy, *, root: Path = Path("/")) -> str:
    """sha256 of the policy's library, which tells a changed allocator. Empty where it has none, or none any more."""
    if not policy.library:
        return ""
    try:
        return hashlib.sha256(Root(root).at(policy.library).read_bytes()).hexdigest()
    except OSError:
        return ""


def _huge_pages(files: Root) -> bool:
    """torch asks for them by madvise, which all settings but [never] grant."""
    switch = files.read(_THP_SWITCH)
    return switch is not None and "[never]" not in switch


def _has_mallopt() -> bool:
    return os.name == "posix" and "CS_GNU_LIBC_VERSION" in os.confstr_names


class _ThisProcess:
    retains = False
    """`apply_mallopt` has been called: what glibc was told cannot be read back."""


def apply_mallopt() -> int:
    """Puts `retain` into force in this process, from its next allocation on. Children that are forked inherit it.

    Returns:
        The threshold in bytes under which blocks are kept; 0 where this C library has none. Less than `RETAIN_MMAP_THRESHOLD`
        means an older glibc that refuses so much.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if _has_mallopt() else None
    if mallopt is None or mallopt(_M_TRIM_THRESHOLD, RETAIN_TRIM_THRESHOLD) != 1:
        return 0
    _ThisProcess.retains = True
    return next((size for size in (RETAIN_MMAP_THRESHOLD, _OLDER_MMAP_THRESHOLD) if mallopt(_M_MMAP_THRESHOLD, size) == 1), 0)


def in_force(environ: Mapping[str, str] | None = None, *, library: str | None = None) -> PolicyName:
    """The policy that this very process runs under.

    What serves malloc decides, not what was asked for: an LD_PRELOAD of a library that is not there changes nothing. The answer
    is a name that `resolve` takes.
    `environ` and `library` (that serves malloc, by default asked of the linker) can be given for another process.
    """
    variables = os.environ if environ is None else environ
    serving = malloc_library() if library is None else library
    known = family(serving)
    for entry in preloaded(variables):
        if "/" in entry and _same_file(Path(entry), Path(serving)):
            installed = find_library(LIBRARIES[known]) if known else ""
            return known if known and installed and _same_file(Path(installed), Path(entry)) else entry
    if known is not None:  # preloaded by its bare name, or linked into this Python
        return known
    if environ is None and _ThisProcess.retains:
        return "retain"
    if all(variables.get(name) == value for name, value in _RETAIN_VARIABLES.items()):
        return "retain"
    return "thp" if variables.get(THP_VARIABLE) == "1" else "default"


def malloc_library() -> str:
    """Path of the library in this process that answers `malloc`; empty where that cannot be told (no /proc, no glibc)."""
    import ctypes

    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        found = _defined_in(ctypes.CDLL(None), maps)
        program = Path("/proc/self/exe").resolve()
    except (OSError, AttributeError, TypeError):
        return ""
    if not found or not _same_file(Path(found), program):
        return found
    # A program that is not position-independent (Debian's python3) has an entry of its own for every function that it calls, and
    # the address is of that. So the libraries are asked one by one, in the linker's order: preloaded ones come first.
    mapped = dict.fromkeys(line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/"))
    for library in (*preloaded(os.environ), *(path for path in mapped if Path(path).name.startswith("libc.so"))):
        try:
            asked = _defined_in(ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY), maps)
        except (OSError, AttributeError):
            continue  # not loaded, or without a malloc
        if asked and not _same_file(Path(asked), program):
            return asked
    return ""


def _defined_in(library: ctypes.CDLL, maps: str) -> str:
    """Path of the file that `malloc` lies in, as seen from `library`; empty: in none."""
    import ctypes

    address = ctypes.cast(library.malloc, ctypes.c_void_p).value or 0
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        start, _, end = fields[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return fields[5] if len(fields) == 6 and fields[5].startswith("/") else ""
    return ""


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other
