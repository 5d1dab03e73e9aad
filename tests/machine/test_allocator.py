"""Allocator policies: found, put into force, and recognised in the process that runs under them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from batchcal.core.errors import UsageError
from batchcal.machine.allocator import (
    PACKAGES,
    AllocatorPolicy,
    apply_mallopt,
    available,
    family,
    in_force,
    library_digest,
    malloc_library,
    resolve,
    without_policy,
)
from tests.support.libraries import cache_file, foreign_library, own_library

TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
THP_SWITCH = "sys/kernel/mm/transparent_hugepage/enabled"


def system(root: Path, *, thp: str | None = "always [madvise] never", libraries: tuple[str, ...] = ()) -> Path:
    if thp is not None:
        (root / THP_SWITCH).parent.mkdir(parents=True)
        (root / THP_SWITCH).write_text(thp, encoding="ascii")
    cache_file(root, {Path(name).name: (own_library(root, name),) for name in libraries})
    return root


def names(root: Path) -> list[str]:
    return [policy.name for policy in available(root=root)]


def test_a_system_without_allocator_libraries_has_the_glibc_policies(tmp_path: Path) -> None:
    assert names(system(tmp_path)) == ["default", "thp", "retain"]


def test_installed_allocator_libraries_are_available_policies(tmp_path: Path) -> None:
    system(tmp_path, thp="always madvise [never]", libraries=(TCMALLOC, "/opt/lib/libjemalloc.so.2", "/opt/lib/libmimalloc.so.3"))
    assert names(tmp_path) == ["default", "retain", "tcmalloc", "jemalloc", "mimalloc"]
    assert resolve("tcmalloc", root=tmp_path) == AllocatorPolicy(name="tcmalloc", kind="preload", library=TCMALLOC)


@pytest.mark.parametrize("name", ["tcmalloc", "jemalloc", "mimalloc"])
def test_the_error_for_a_missing_allocator_library_names_its_package(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name, root=system(tmp_path))
    assert PACKAGES[name] in caught.value.try_


@pytest.mark.parametrize("thp", [None, "always madvise [never]"])
def test_the_thp_policy_is_rejected_if_the_kernel_does_not_support_it(thp: str | None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="transparent huge pages"):
        resolve("thp", root=system(tmp_path, thp=thp))


def test_the_error_for_an_unknown_policy_lists_the_available_policies(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve("tcmaloc", root=tmp_path)
    assert "tcmalloc" in caught.value.known


def test_an_allocator_library_can_be_given_by_its_path(tmp_path: Path) -> None:
    library = own_library(tmp_path, "/lib/liballoc.so")
    policy = resolve("/lib/liballoc.so", root=tmp_path)
    assert policy == AllocatorPolicy(name=library, kind="preload", library=library)


def test_the_path_of_an_installed_library_resolves_to_its_named_policy(tmp_path: Path) -> None:
    system(tmp_path, libraries=(TCMALLOC,))
    (tmp_path / "link").symlink_to(tmp_path / TCMALLOC.lstrip("/"))
    (tmp_path / "libtcmalloc.so").symlink_to("link")
    assert resolve("/libtcmalloc.so", root=tmp_path).name == "tcmalloc"
    other = own_library(tmp_path, "/opt/libtcmalloc.so")
    assert resolve(other, root=tmp_path).name == other


def test_a_library_path_that_cannot_be_preloaded_is_rejected(tmp_path: Path) -> None:
    own_library(tmp_path, "/my lib/liballoc.so")
    foreign_library(tmp_path, "/lib/libforeign.so")
    for path, words in (("/my lib/liballoc.so", "spaces"), ("/lib/libforeign.so", "machine"), ("/lib/gone.so", "no such file")):
        with pytest.raises(UsageError) as caught:
            resolve(path, root=tmp_path)
        assert words in caught.value.known


def test_the_library_digest_changes_with_the_library(tmp_path: Path) -> None:
    policy = resolve("tcmalloc", root=system(tmp_path, libraries=(TCMALLOC,)))
    file = tmp_path / TCMALLOC.lstrip("/")
    assert library_digest(policy, root=tmp_path) == hashlib.sha256(file.read_bytes()).hexdigest()
    before = library_digest(policy, root=tmp_path)
    file.write_bytes(file.read_bytes() + b"newer")
    assert library_digest(policy, root=tmp_path) != before
    file.unlink()
    assert library_digest(policy, root=tmp_path) == ""
    assert library_digest(resolve("default")) == ""


PRELOAD = AllocatorPolicy(name="tcmalloc", kind="preload", library=TCMALLOC)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", TCMALLOC),
        ("/opt/libspy.so", f"{TCMALLOC}:/opt/libspy.so"),
        ("/opt/libspy.so /opt/libjemalloc.so.2", f"{TCMALLOC}:/opt/libspy.so"),
        (TCMALLOC, TCMALLOC),
    ],
)
def test_ld_preload_starts_with_the_policy_library_and_has_no_other_allocator(before: str, after: str) -> None:
    base = {"LD_PRELOAD": before} if before else {}
    assert PRELOAD.environment(base) == {"LD_PRELOAD": after}


def test_a_policy_environment_contains_no_variables_of_another_policy() -> None:
    policies = [
        resolve("default"),
        AllocatorPolicy(name="thp", kind="environment"),
        AllocatorPolicy(name="retain", kind="mallopt"),
        PRELOAD,
    ]
    base = {"HOME": "/root", "MALLOC_ARENA_MAX": "2"}
    for before in policies:
        for after in policies:
            assert after.process_environment(before.process_environment(base)) == {**base, **after.environment(base)}
    assert without_policy({"LD_PRELOAD": "/opt/libspy.so:/x/libmimalloc.so"}) == {"LD_PRELOAD": "/opt/libspy.so"}


@pytest.mark.parametrize(
    ("library", "environ", "policy"),
    [
        ("/lib/libc.so.6", {}, "default"),
        ("/lib/libc.so.6", {"THP_MEM_ALLOC_ENABLE": "1"}, "thp"),
        ("/lib/libc.so.6", {"THP_MEM_ALLOC_ENABLE": "0"}, "default"),
        ("/lib/libc.so.6", {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647"}, "retain"),
        ("/lib/libc.so.6", {"MALLOC_MMAP_THRESHOLD_": "1073741824"}, "default"),
        ("/lib/libc.so.6", {"LD_PRELOAD": "/gone/libtcmalloc.so"}, "default"),
        ("/lib/libtcmalloc.so.4.5", {"LD_PRELOAD": "libtcmalloc.so.4"}, "tcmalloc"),
        ("/opt/liballoc.so", {"LD_PRELOAD": "/opt/libspy.so:/opt/liballoc.so"}, "/opt/liballoc.so"),
        ("/opt/libjemalloc.so", {"LD_PRELOAD": "/opt/libjemalloc.so", "THP_MEM_ALLOC_ENABLE": "1"}, "/opt/libjemalloc.so"),
    ],
)
def test_the_library_that_provides_malloc_determines_the_active_policy(
    library: str, environ: Mapping[str, str], policy: str
) -> None:
    assert in_force(environ, library=library) == policy


def test_the_allocator_family_is_recognized_by_the_file_name() -> None:
    libraries = (
        "/a/libtcmalloc_minimal.so.4",
        "libjemalloc.so.2",
        "/x/libmimalloc-secure.so",
        "/lib/libc.so.6",
        "/tcmalloc/libc.so",
    )
    assert [family(name) for name in libraries] == ["tcmalloc", "jemalloc", "mimalloc", None, None]


def test_malloc_of_this_process_comes_from_the_c_library() -> None:
    assert Path(malloc_library()).name.startswith(("libc.so", "libc-"))


FAULTS = """
import ctypes, json, resource, sys
from batchcal.machine.allocator import apply_mallopt, in_force
threshold = apply_mallopt() if "mallopt" in sys.argv else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def rounds(size, count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        libc.free(block)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (size / 4096)
rounds(100 << 20, 1)
print(json.dumps([in_force(), threshold, rounds(100 << 20, 4)]))
"""
"""Faults per page of a block that is taken and given back four times: 4 where the kernel gets it back each time, 0 where not."""


def run_python(code: str, environ: Mapping[str, str], *arguments: str) -> list[str | int | float | None]:
    environment = {**os.environ, **environ}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    reply = json.loads(done.stdout)
    assert isinstance(reply, list)
    return reply


@pytest.mark.smoke
@pytest.mark.child
def test_retain_keeps_large_blocks_through_environment_and_mallopt() -> None:
    plain = run_python(FAULTS, {})
    by_environment = run_python(FAULTS, resolve("retain").environment({}))
    by_mallopt = run_python(FAULTS, {}, "mallopt")
    assert plain[:2] == ["default", None]
    assert by_environment[:2] == ["retain", None]
    assert by_mallopt[:2] == ["retain", 1 << 30]
    assert [round(float(reply[2] or 0)) for reply in (plain, by_environment, by_mallopt)] == [4, 0, 0]


IN_FORCE = """
import json
from batchcal.machine.allocator import in_force, malloc_library
print(json.dumps([in_force(), malloc_library()]))
"""

ALLOCATOR = """
#include <stddef.h>
extern void *__libc_malloc(size_t);
extern void __libc_free(void *);
void *malloc(size_t size) { return __libc_malloc(size); }
void free(void *block) { __libc_free(block); }
"""


@pytest.mark.child
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to build an allocator")
def test_a_library_given_by_path_is_active_in_the_child(tmp_path: Path) -> None:
    source = tmp_path / "alloc.c"
    source.write_text(ALLOCATOR, encoding="ascii")
    library = tmp_path / "libplain.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True, capture_output=True)
    policy = resolve(str(library))
    assert run_python(IN_FORCE, policy.environment({})) == [str(library), str(library)]
    assert run_python(IN_FORCE, policy.process_environment({"LD_PRELOAD": "/gone.so"}))[0] == policy.name
    assert run_python(IN_FORCE, resolve("default").environment({}))[0] == "default"


@pytest.mark.child
def test_an_installed_library_is_active_under_its_policy_name() -> None:
    policies = [policy for policy in available() if policy.kind == "preload"]
    if not policies:
        pytest.skip("no allocator library is installed here")
    for policy in policies:
        assert run_python(IN_FORCE, policy.environment({}))[0] == policy.name


def test_a_c_library_without_mallopt_has_no_retain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "confstr_names", {})
    assert apply_mallopt() == 0
    assert "retain" not in names(system(tmp_path))
