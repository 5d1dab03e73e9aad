"""An environment in which flock, fsync or rename fail as they do on bad disks and odd network mounts."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest


def faulty_environment(folder: Path, *, after: int = 0, **faults: str) -> dict[str, str]:
    """Environment for a child: `faulty_environment(tmp_path, fsync="EIO")` lets each fsync fail, `after=1` each but the first.

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
