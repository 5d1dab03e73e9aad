"""Shared libraries and a linker's cache in a tree: enough of them to be found, none that could be loaded."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

_I386 = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 3, 3)
_S390 = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HH", 3, 22)


def own_library(root: Path, name: str) -> str:
    """A file at `name` that begins as a library for this machine does; returns `name`."""
    with Path(sys.executable).open("rb") as file:
        return _library(root, name, file.read(64))


def foreign_library(root: Path, name: str) -> str:
    """One for a machine that this is not."""
    with Path(sys.executable).open("rb") as file:
        return _library(root, name, _S390 if file.read(20)[18:20] == _I386[18:20] else _I386)


def _library(root: Path, name: str, content: bytes) -> str:
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def cache_file(root: Path, libraries: Mapping[str, tuple[str, ...]], *, before: bytes = b"") -> Path:
    """/etc/ld.so.cache in the form of glibc 2.2 and later."""
    pairs = [(name, path) for name, paths in libraries.items() for path in paths]
    strings = b""
    entries = b""
    strings_at = 48 + 24 * len(pairs)
    for name, path in pairs:
        name_at = strings_at + len(strings)
        strings += name.encode() + b"\0"
        path_at = strings_at + len(strings)
        strings += path.encode() + b"\0"
        entries += struct.pack("=iIIIQ", 0x0303, name_at, path_at, 0, 0)
    header = b"glibc-ld.so.cache1.1" + struct.pack("=II", len(pairs), len(strings)) + bytes(20)
    file = root / "etc/ld.so.cache"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(before + header + entries + strings)
    return file
