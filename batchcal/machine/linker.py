"""Library search of the dynamic linker: its cache, then the usual directories. Loads nothing, starts no process."""

from __future__ import annotations

import struct
import sys
import sysconfig
from pathlib import Path
from typing import Final

from batchcal.machine.roots import THIS_MACHINE, Root

CACHE: Final = "/etc/ld.so.cache"
_MAGIC: Final = b"glibc-ld.so.cache1.1"
_HEADER: Final = struct.Struct("=20sII20x")
"""struct cache_file_new of glibc's dl-cache.h: magic and version, entries, bytes of strings, and unused fields."""
_ENTRY: Final = struct.Struct("=iII12x")
"""struct file_entry_new: flags, offset of the name, offset of the path; the offsets count from the magic."""
_ELF_MACHINE: Final = slice(18, 20)
_ELF_CLASS: Final = slice(4, 6)


def find_library(names: tuple[str, ...], root: Root = THIS_MACHINE) -> str:
    """Return the absolute path of the first of `names` that this process can load. Empty: none."""
    cached = cached_libraries(root)
    directories = library_directories()
    for name in names:
        for candidate in (*cached.get(name, ()), *(f"{directory}/{name}" for directory in directories)):
            if is_loadable(candidate, root):
                return candidate
    return ""


def cached_libraries(root: Root = THIS_MACHINE) -> dict[str, tuple[str, ...]]:
    """Paths by library name, as `ldconfig -p` lists them. Empty if the cache is missing or has an unknown format (musl)."""
    try:
        data = root.at(CACHE).read_bytes()
    except OSError:
        return {}
    start = data.find(_MAGIC)  # older systems write a table in the old format before it
    if start < 0 or len(data) < start + _HEADER.size:
        return {}
    _, count, _ = _HEADER.unpack_from(data, start)
    entries = start + _HEADER.size
    if len(data) < entries + count * _ENTRY.size:
        return {}
    paths: dict[str, tuple[str, ...]] = {}
    for index in range(count):
        _, name_at, path_at = _ENTRY.unpack_from(data, entries + index * _ENTRY.size)
        name, path = _text(data, start + name_at), _text(data, start + path_at)
        paths[name] = (*paths.get(name, ()), path)
    return paths


def _text(data: bytes, start: int) -> str:
    end = data.find(b"\0", start)
    return data[start : end if end >= 0 else None].decode("utf-8", "surrogateescape")


def library_directories() -> tuple[str, ...]:
    """Directories of libraries that no cache lists: this Python's own prefix (conda), then multiarch and lib64."""
    triplet = sysconfig.get_config_var("MULTIARCH")
    system = ["/usr/local/lib", "/usr/lib64", "/usr/lib", "/lib64", "/lib"]
    multiarch = [f"/usr/lib/{triplet}", f"/lib/{triplet}"] if isinstance(triplet, str) and triplet else []
    return (f"{sys.prefix}/lib", *multiarch, *system)


def is_loadable(path: str, root: Root = THIS_MACHINE) -> bool:
    """Return True if `path` is an ELF file for the machine that this Python runs on. The linker ignores a preloaded library of
    another machine (an i386 library on x86-64) and only prints a warning."""
    ours, theirs = _elf_start(Path(sys.executable)), _elf_start(root.at(path))
    return bool(ours and theirs) and all(ours[part] == theirs[part] for part in (_ELF_CLASS, _ELF_MACHINE))


def _elf_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(20)
    except OSError:
        return b""
    return start if start.startswith(b"\x7fELF") and len(start) == 20 else b""
