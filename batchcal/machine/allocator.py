"""Allocator policies: the allocation of host memory, which on a CPU determines the speed and the peak of a training.

glibc returns large blocks to the kernel at every step, which costs page faults. A policy is part of a plan and of the
fingerprint. Most policies are read when a process starts, so each has its own process environment.
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
"""Not a policy: the fastest policy of this system must be determined."""
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
"""Debian packages of the libraries. Fedora and conda call the first one gperftools."""

RETAIN_MMAP_THRESHOLD: Final = GIB
"""Blocks below this size come from the heap, which keeps them. Larger blocks have their own mapping, which is returned at once.
Measured (glibc 2.36): five rounds of 400 MiB take 77 thousand page faults, with the default 512 thousand. The result is the
same by mallopt and by environment."""
RETAIN_TRIM_THRESHOLD: Final = 2**31 - 1
"""The heap returns nothing to the system while less memory than this is free at its end. Bytes."""
_OLDER_MMAP_THRESHOLD: Final = 32 * MIB
"""Largest value that a glibc with the check `value <= HEAP_MAX_SIZE / 2` accepts. It ignores larger values of the environment."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

THP_VARIABLE: Final = "THP_MEM_ALLOC_ENABLE"
_RETAIN_VARIABLES: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(RETAIN_MMAP_THRESHOLD),
    "MALLOC_TRIM_THRESHOLD_": str(RETAIN_TRIM_THRESHOLD),
}
_THP_SWITCH: Final = "/sys/kernel/mm/transparent_hugepage/enabled"


class AllocatorPolicy(Record):
    """A policy with the settings that put it into force."""

    name: PolicyName
    kind: Literal["none", "environment", "mallopt", "preload"]
    library: str = ""
    """Absolute path of the preloaded library. Empty: the policy needs none."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Variables to set, given the environment `base` (an existing LD_PRELOAD is kept behind the library of the policy)."""
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
        """Complete environment of a process under this policy: `base` without the variables of other policies, plus its own."""
        return {**without_policy(base), **self.environment(without_policy(base))}


def maps_large_blocks(name: PolicyName) -> bool:
    """Return True if blocks of 32 MiB and more are mapped one by one under the policy: glibc, unless configured otherwise."""
    configured = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return name in {"default", "thp"} and platform.libc_ver()[0] == "glibc" and not configured


def without_policy(base: Mapping[str, str]) -> dict[str, str]:
    """`base` without the variables of all policies. Other preloaded libraries stay."""
    own = {THP_VARIABLE, *_RETAIN_VARIABLES}
    environment = {name: value for name, value in base.items() if name not in own}
    if "LD_PRELOAD" in environment:
        others = [entry for entry in preloaded(base) if family(entry) is None]
        environment["LD_PRELOAD"] = ":".join(others)
        if not others:
            del environment["LD_PRELOAD"]
    return environment


def preloaded(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Entries of LD_PRELOAD, which may be separated by blanks or colons."""
    return tuple(entry for entry in environ.get("LD_PRELOAD", "").replace(":", " ").split() if entry)


def family(library: str) -> PolicyName | None:
    """`tcmalloc`, `jemalloc` or `mimalloc` by the file's name; None for any other library."""
    name = Path(library).name
    return next((policy for policy in LIBRARIES if name.startswith(f"lib{policy}")), None)


def resolve(name: PolicyName, *, root: Path = Path("/")) -> AllocatorPolicy:
    """Return the policy `name`, with its library from the linker's cache.

    Raises:
        UsageError: unknown name, or a library that this system does not have (the error names its package).
    """
    files = Root(root)
    if name == "default":
        return AllocatorPolicy(name=name, kind="none")
    if name == "thp":
        if not _huge_pages(files):
            raise UsageError(
                "the allocator policy thp needs transparent huge pages, which this kernel does not provide",
                known=f"content of {_THP_SWITCH}: {files.read(_THP_SWITCH) or 'none'}",
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
        return _library_by_name(name, files)
    if "/" in name:
        return _library_by_path(name, files)
    choices = (AUTO, *BUILT_IN, *LIBRARIES)
    close = closest(name, choices)
    raise UsageError(
        f"there is no allocator policy {name!r}" + (f" (did you mean {close}?)" if close else ""),
        known=f"valid values: {', '.join(choices)}, or the path of a library",
        try_=f"--allocator {close or AUTO}",
    )


def _library_by_name(name: PolicyName, files: Root) -> AllocatorPolicy:
    library = find_library(LIBRARIES[name], files)
    if not library:
        raise UsageError(
            f"the allocator {name} is not installed",
            known=f"{LIBRARIES[name][0]} is not in the linker's cache and not in the usual directories",
            try_=f"apt-get install {PACKAGES[name]}, or --allocator /path/to/{LIBRARIES[name][0]}",
        )
    return AllocatorPolicy(name=name, kind="preload", library=library)


def _library_by_path(name: PolicyName, files: Root) -> AllocatorPolicy:
    library = str(Path(name).expanduser().absolute())  # not resolved: the linker gets the name of a link
    if any(character in library for character in " :"):
        raise UsageError(
            f"the allocator library {library!r} cannot be preloaded",
            known="spaces and colons separate the entries of LD_PRELOAD",
            try_="--allocator with a path without spaces and colons, for example a symbolic link to the library",
        )
    if not is_loadable(library, files):
        raise UsageError(
            f"the allocator library {library} cannot be loaded",
            known="there is no such file, or it is not a shared library for this machine",
            try_="--allocator auto, or the path of an existing library",
        )
    policy = family(library)
    installed = find_library(LIBRARIES[policy], files) if policy else ""
    if policy and installed and _same_file(files.at(installed), files.at(library)):
        return AllocatorPolicy(name=policy, kind="preload", library=installed)  # one library, one name
    return AllocatorPolicy(name=library, kind="preload", library=library)


def available(*, root: Path = Path("/")) -> tuple[AllocatorPolicy, ...]:
    """All policies that this system can put into force, `default` first."""
    policies: list[AllocatorPolicy] = []
    for name in (*BUILT_IN, *LIBRARIES):
        with contextlib.suppress(UsageError):
            policies.append(resolve(name, root=root))
    return tuple(policies)


def compared(*, root: Path = Path("/")) -> tuple[AllocatorPolicy, ...]:
    """The available policies that `auto` compares, `default` first: all but `thp`.

    In 42 turns of each policy at each of three sizes (four examples), `thp` was faster than the best other policy by 6 % at most,
    which is less than turns differ. At 64 samples it was slower by 8 to 37 %. Each policy costs seconds.
    """
    return tuple(policy for policy in available(root=root) if policy.name != "thp")


def library_digest(policy: AllocatorPolicy, *, root: Path = Path("/")) -> str:
    """sha256 of the policy's library, which detects a changed allocator. Empty if there is no library, or it no longer exists."""
    if not policy.library:
        return ""
    try:
        return hashlib.sha256(Root(root).at(policy.library).read_bytes()).hexdigest()
    except OSError:
        return ""


def _huge_pages(files: Root) -> bool:
    """True if torch can get huge pages: it requests them by madvise, which all settings except [never] grant."""
    switch = files.read(_THP_SWITCH)
    return switch is not None and "[never]" not in switch


def _has_mallopt() -> bool:
    return os.name == "posix" and "CS_GNU_LIBC_VERSION" in os.confstr_names


class _ThisProcess:
    retains = False
    """`apply_mallopt` has been called. The setting of glibc cannot be read back."""


def requests_retain(variables: Mapping[str, str]) -> bool:
    """Return True if a process that starts with these environment variables runs under `retain`."""
    return all(variables.get(name) == value for name, value in _RETAIN_VARIABLES.items())


def apply_mallopt() -> int:
    """Put `retain` into force in this process, from its next allocation on. Forked children inherit it.

    Returns:
        Threshold in bytes below which blocks are kept; 0 if this C library has none. Less than `RETAIN_MMAP_THRESHOLD` means
        an older glibc that rejects the larger value.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if _has_mallopt() else None
    if mallopt is None or mallopt(_M_TRIM_THRESHOLD, RETAIN_TRIM_THRESHOLD) != 1:
        return 0
    _ThisProcess.retains = True
    return next((size for size in (RETAIN_MMAP_THRESHOLD, _OLDER_MMAP_THRESHOLD) if mallopt(_M_MMAP_THRESHOLD, size) == 1), 0)


def in_force(environ: Mapping[str, str] | None = None, *, library: str | None = None) -> PolicyName:
    """Return the policy of this process, a name that `resolve` accepts.

    The library that serves malloc decides, not the requested one: an LD_PRELOAD of a missing library changes nothing.
    `environ` and `library` (the one that serves malloc, by default read from the linker) can be given for another process.
    """
    variables = os.environ if environ is None else environ
    serving = malloc_library() if library is None else library
    policy = family(serving)
    for entry in preloaded(variables):
        if "/" in entry and _same_file(Path(entry), Path(serving)):
            installed = find_library(LIBRARIES[policy]) if policy else ""
            return policy if policy and installed and _same_file(Path(installed), Path(entry)) else entry
    if policy is not None:  # preloaded by its bare name, or linked into this Python
        return policy
    if environ is None and _ThisProcess.retains:
        return "retain"
    if requests_retain(variables):
        return "retain"
    return "thp" if variables.get(THP_VARIABLE) == "1" else "default"


def malloc_library() -> str:
    """Path of the library that serves `malloc` in this process. Empty: unknown (no /proc, no glibc)."""
    import ctypes

    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        file = _defined_in(ctypes.CDLL(None), maps)
        program = Path("/proc/self/exe").resolve()
    except (OSError, AttributeError, TypeError):
        return ""
    if not file or not _same_file(Path(file), program):
        return file
    # A program that is not position-independent (Debian's python3) has its own entry for every function that it calls, and the
    # address is that of the entry. So the libraries are checked one by one, in the linker's order: preloaded ones come first.
    mapped = dict.fromkeys(line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/"))
    for library in (*preloaded(os.environ), *(path for path in mapped if Path(path).name.startswith("libc.so"))):
        try:
            serving_file = _defined_in(ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY), maps)
        except (OSError, AttributeError):
            continue  # not loaded, or without a malloc
        if serving_file and not _same_file(Path(serving_file), program):
            return serving_file
    return ""


def _defined_in(library: ctypes.CDLL, maps: str) -> str:
    """Path of the file that contains `malloc` as `library` resolves it. Empty: none."""
    import ctypes

    address = ctypes.cast(library.malloc, ctypes.c_void_p).value or 0
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        start, _, end = fields[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return fields[5] if len(fields) == 6 and fields[5].startswith("/") else ""
    return ""


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return first == second
