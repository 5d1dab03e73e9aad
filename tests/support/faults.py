"""Disks that are full, broken or odd: calls that fail, writes that are cut short, mounts of a few kilobytes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest


def faulty_environment(folder: Path, faults: Mapping[str, str], *, after: int = 0) -> dict[str, str]:
    """Environment for a child: `{"fsync": "EIO"}` lets each fsync fail, `after=1` each but the first.

    Skips the test where there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the failing calls with")
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    numbers = {f"FAULT_{call.upper()}": str(getattr(errno, name)) for call, name in faults.items()}
    return {**os.environ, **numbers, "FAULT_AFTER": str(after), "LD_PRELOAD": str(library)}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel takes part of a write and refuses the rest, as a disk does that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
