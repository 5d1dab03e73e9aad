"""Libraries are found where the dynamic linker finds them."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.machine.linker import CACHE, cached_libraries, find_library, is_loadable, library_directories
from batchcal.machine.roots import Root
from tests.support.libraries import cache_file, foreign_library, own_library


def test_the_linker_cache_returns_every_path_of_a_library(tmp_path: Path) -> None:
    libraries = {"libtcmalloc.so.4": ("/lib/i386-linux-gnu/libtcmalloc.so.4", "/lib/x86_64-linux-gnu/libtcmalloc.so.4")}
    cache_file(tmp_path, libraries | {"libz.so.1": ("/lib/libz.so.1",)})
    assert cached_libraries(Root(tmp_path)) == libraries | {"libz.so.1": ("/lib/libz.so.1",)}


def test_an_old_format_table_in_the_linker_cache_is_skipped(tmp_path: Path) -> None:
    cache_file(tmp_path, {"libz.so.1": ("/lib/libz.so.1",)}, before=b"ld.so-1.7.0\0" + struct.pack("=I", 0))
    assert cached_libraries(Root(tmp_path)) == {"libz.so.1": ("/lib/libz.so.1",)}


@pytest.mark.parametrize("content", [b"", b"glibc-ld.so.cache1.1", b"something else entirely", None])
def test_a_cache_that_cannot_be_read_is_empty(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        path = tmp_path / CACHE.lstrip("/")
        path.parent.mkdir()
        path.write_bytes(content)
    assert cached_libraries(Root(tmp_path)) == {}


def test_a_truncated_cache_is_empty(tmp_path: Path) -> None:
    path = cache_file(tmp_path, {"libz.so.1": ("/lib/libz.so.1",)})
    path.write_bytes(path.read_bytes()[:60])
    assert cached_libraries(Root(tmp_path)) == {}


def test_a_library_of_another_architecture_is_ignored(tmp_path: Path) -> None:
    foreign_library(tmp_path, "/lib/i386-linux-gnu/libtcmalloc.so.4")
    own = own_library(tmp_path, "/lib/ours/libtcmalloc.so.4")
    cache_file(tmp_path, {"libtcmalloc.so.4": ("/lib/i386-linux-gnu/libtcmalloc.so.4", own)})
    assert find_library(("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"), Root(tmp_path)) == own


def test_the_first_available_library_name_is_used(tmp_path: Path) -> None:
    one, two = own_library(tmp_path, "/opt/a/liba.so"), own_library(tmp_path, "/opt/b/libb.so")
    cache_file(tmp_path, {"liba.so": (one,), "libb.so": (two,)})
    assert find_library(("libb.so", "liba.so"), Root(tmp_path)) == two


@pytest.mark.parametrize("directory", library_directories())
def test_the_standard_directories_are_searched_without_a_linker_cache(directory: str, tmp_path: Path) -> None:
    own = own_library(tmp_path, f"{directory}/libjemalloc.so.2")
    assert find_library(("libjemalloc.so.2",), Root(tmp_path)) == own


def test_a_cached_library_that_does_not_exist_is_not_returned(tmp_path: Path) -> None:
    cache_file(tmp_path, {"liba.so": ("/opt/a/liba.so",)})
    assert find_library(("liba.so",), Root(tmp_path)) == ""


def test_a_linker_script_is_not_loadable(tmp_path: Path) -> None:
    (tmp_path / "liba.so").write_text("INPUT(liba.so.1)", encoding="ascii")
    assert not is_loadable("/liba.so", Root(tmp_path))
    assert is_loadable(sys.executable)


@pytest.mark.child
def test_the_linker_cache_of_this_machine_matches_ldconfig() -> None:
    try:
        listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no ldconfig here")
    pairs = set(re.findall(r"^\t(\S+) \(.*\) => (.+)$", listed, re.MULTILINE))
    assert pairs
    assert {(name, path) for name, paths in cached_libraries().items() for path in paths} == pairs
