"""What runs, without importing it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import pytest

from batchcal.detect.software import libc, read_software, version_of
from batchcal.machine.roots import THIS_MACHINE, Root
from tests.support.machines import Machine


def test_the_operating_system_is_named_by_its_kernel_version(tmp_path: Path) -> None:
    Machine(tmp_path)
    found = read_software(Root(tmp_path), {}, cuda="12.8")
    assert (found.os, found.cuda) == ("Linux 6.8.0-45-generic", "12.8")
    assert found.python == platform.python_version()
    assert found.torch == metadata.version("torch")


def test_the_operating_system_comes_from_python_without_proc(tmp_path: Path) -> None:
    assert read_software(Root(tmp_path), {}).os == f"{platform.system()} {platform.release()}"


def test_only_relevant_environment_variables_are_recorded() -> None:
    environ = {
        "SECRET_TOKEN": "x",
        "MALLOC_ARENA_MAX": "2",
        "LD_PRELOAD": "/a.so",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "OMP_NUM_THREADS": "4",
        "MKL_NUM_THREADS": "4",
        "HOME": "/root",
    }
    found = read_software(THIS_MACHINE, environ)
    assert list(found.allocator_environment) == ["LD_PRELOAD", "MALLOC_ARENA_MAX", "PYTORCH_CUDA_ALLOC_CONF"]
    assert found.thread_environment == {"MKL_NUM_THREADS": "4", "OMP_NUM_THREADS": "4"}


def test_the_c_library_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libc().startswith("glibc 2.")
    monkeypatch.setattr(os, "confstr_names", {})
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2.5"))
    assert libc() == "musl 1.2.5"
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert libc() == ""


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert version_of("no-such-distribution-at-all") == ""
