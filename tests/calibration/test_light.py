"""Reading a calibration is for the fast verbs: it loads no torch, no terminal, no processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
before = set(sys.modules)  # coverage brings some of its own
from pathlib import Path
from batchcal.calibration.keys import Key, Trust
from batchcal.calibration.store import Loaded, load
key = Key(b"the key of the kept calibrations", configured=True, source="tests")
assert isinstance(load(Path(sys.argv[1]), trust=Trust(key)), Loaded)
heavy = {"torch", "numpy", "rich", "typer", "multiprocessing", "filelock", "asyncio", "hypothesis"}
print(sorted(heavy & (set(sys.modules) - before)))
"""


@pytest.mark.child
def test_loading_a_calibration_loads_nothing_heavy() -> None:
    kept = Path(__file__).parent / "data" / "format-1.json"
    done = subprocess.run([sys.executable, "-c", CODE, str(kept)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
