"""Reading a run is for the fast verbs: it loads no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import write_run

CODE = """
import sys
before = set(sys.modules)  # coverage brings some of its own
from batchcal.{module} import *
print(sorted({{"torch", "numpy", "rich", "typer", "multiprocessing", "tensorboard"}} & (set(sys.modules) - before)))
"""
SHOW = """
import sys
before = set(sys.modules)
from batchcal.__main__ import main
assert main(["show", sys.argv[1]]) == 0
assert main(["show", sys.argv[1], "--html", sys.argv[1] + ".html"]) == 0
print("LOADED", sorted({"torch", "numpy", "optuna"} & (set(sys.modules) - before)))
"""


@pytest.mark.child
@pytest.mark.parametrize("module", ["train", "train.report.run", "train.report.read", "train.report.monitor"])
def test_what_sees_a_training_loads_nothing_heavy(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.child
def test_showing_a_run_loads_no_torch(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.jsonl")
    done = subprocess.run([sys.executable, "-c", SHOW, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "LOADED []", done.stderr
