"""Training commands that are not written for batchcal: observed, calibrated, planned and started, each in real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.children import REPOSITORY

pytestmark = pytest.mark.child

SCRIPT = """\
import argparse, os, sys
import torch
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--epochs", type=int, default=50)
options = parser.parse_args()
data = TensorDataset(torch.randn(4096, 64), torch.randint(4, (4096,)))
loader = DataLoader(data, batch_size=options.batch_size, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
optimizer = torch.optim.Adam(model.parameters())
print("batch", options.batch_size, "accumulate", options.accumulate, "threads", os.environ.get("OMP_NUM_THREADS"))
try:
    for epoch in range(options.epochs):
        for number, (x, y) in enumerate(loader, 1):
            (torch.nn.functional.cross_entropy(model(x), y) / options.accumulate).backward()
            if number % options.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
finally:
    open("the end", "w").close()
"""
LIMITS = ("--memory-limit", "1GiB", "--samples", "4", "--max-batch", "256")
COMMAND = ("python", "train.py", "--batch-size", "{batch_size}", "--accumulate", "{accumulation_steps}")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def batchcal(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    python_path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PATH": path, "PYTHONPATH": python_path, "COLUMNS": "100"} | variables
    command = [sys.executable, "-m", "batchcal", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_a_command_without_placeholders_is_observed_once_and_stopped(script: Path) -> None:
    done = batchcal(script, "calibrate", *LIMITS, "--json", "--", "python", "train.py", "--batch-size", "32", "--accumulate", "2")
    assert done.returncode == 0, done.stderr
    observed = json.loads(done.stdout)
    assert (observed["rows"], observed["micro_batches"], observed["world_size"]) == (64, 2, 1)
    assert observed["peak_bytes"] < observed["budget_bytes"]
    assert "next: batchcal calibrate -- python train.py --batch-size {batch_size} --accumulate 2" in done.stderr
    assert sorted(path.name for path in script.iterdir()) == ["train.py"]  # not even its `finally` ran


@pytest.mark.smoke
def test_an_unmodified_script_is_calibrated_planned_and_started(script: Path) -> None:
    measured = batchcal(script, "calibrate", *LIMITS, "--allocator", "default", "--effective-batch", "384", "--", *COMMAND)
    assert measured.returncode == 0, measured.stderr
    assert not (script / "the end").exists()
    assert "train  256" in measured.stdout
    plan = json.loads(batchcal(script, "plan", "--json", "--effective-batch", "384").stdout)
    assert plan["status"] == "verified"
    assert plan["micro_batch"] * plan["accumulation_steps"] == 384
    again = batchcal(script, "calibrate", *LIMITS, "--allocator", "default", "--effective-batch", "384", "--", *COMMAND)
    assert "still valid" in again.stderr
    started = batchcal(script, "exec", "--effective-batch", "384", "--", *COMMAND, "--epochs", "1")
    assert started.returncode == 3  # another command
    (file,) = (script / ".batchcal").glob("train-*.json")
    started = batchcal(script, "exec", "--calibration", str(file), "--effective-batch", "384", "--", *COMMAND, "--epochs", "1")
    assert started.returncode == 3
    assert "made for another command" in started.stderr
    started = batchcal(script, "exec", "--effective-batch", "384", "--", *COMMAND)
    assert started.returncode == 0, started.stderr
    assert f"batch {plan['micro_batch']} accumulate {plan['accumulation_steps']}" in started.stdout
    assert (script / "the end").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("python", "missing.py", "{batch_size}"), 5, "the command ended with exit code 2"),
        (("missing", "{batch_size}"), 2, "the command ended with exit code 127"),
        (("python", "-c", "print('no training')", "{batch_size}"), 2, "none of its Python processes reported"),
        (("python", "-c", "import torch; 1 / 0", "{batch_size}"), 5, "ZeroDivisionError: division by zero"),
        (("python", "train.py", "--epochs", "1", "--batch-size", "4096", "{batch_size}"), 5, "exit code 2"),
        (
            ("python", "-c", "import torch\nx = torch.ones(1, requires_grad=True)\nx.backward()", "{batch_size}"),
            2,
            "1 backward pass;",
        ),
    ],
)
def test_a_command_that_cannot_be_measured_ends_with_the_reason(
    script: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    done = batchcal(script, "calibrate", *LIMITS, "--", *words)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert not done.stdout


def test_a_batch_size_that_the_script_ignores_is_an_error(script: Path) -> None:
    done = batchcal(script, "calibrate", *LIMITS, "--", "python", "train.py", "--epochs", "{batch_size}")
    assert done.returncode == 2
    assert "trained with 16 rows per optimizer step instead of 8" in done.stderr


@pytest.mark.parametrize(
    ("change", "words", "rows"),
    [
        (("", ""), ("--accumulate", "4"), "32 rows per optimizer step instead of 8"),
        (("=options.batch_size", "=2 * options.batch_size"), (), "16 rows per optimizer step instead of 8"),
    ],
)
def test_a_script_that_trains_with_another_batch_than_its_command_line_is_rejected(
    script: Path, change: tuple[str, str], words: tuple[str, ...], rows: str
) -> None:
    (script / "train.py").write_text(SCRIPT.replace(*change))
    done = batchcal(script, "calibrate", *LIMITS, "--", "python", "train.py", "--batch-size", "{batch_size}", *words)
    assert done.returncode == 2, done.stderr
    assert rows in done.stderr


def test_a_size_that_the_script_reduces_by_itself_is_not_verified(script: Path) -> None:
    (script / "train.py").write_text(SCRIPT.replace("=options.batch_size", "=min(40, options.batch_size)"))
    command = ("--", "python", "train.py", "--batch-size", "{batch_size}")
    done = batchcal(script, "calibrate", *LIMITS, "--allocator", "default", "--max-probes", "6", *command)
    verified = re.search(r"train  (\d+)", done.stdout)
    assert verified is not None, done.stderr
    assert int(verified[1]) <= 40
    assert "40 rows per optimizer step instead of 256" in " ".join(done.stderr.split())


def test_a_command_with_placeholders_is_not_started_without_a_plan(script: Path) -> None:
    done = batchcal(script, "exec", "--on-stale", "default", "--", *COMMAND)
    assert done.returncode == 2
    assert "the command has placeholders, and without a plan they have no values" in done.stderr
    assert not (script / "the end").exists()


def test_the_sitecustomize_of_the_user_runs_too(script: Path) -> None:
    hidden = script / "site"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import os\nos.environ['FROM_SITE'] = 'yes'\n")
    (script / "check.py").write_text("import os\nassert os.environ['FROM_SITE'] == 'yes'\n" + SCRIPT)
    path = os.pathsep.join([str(hidden), str(REPOSITORY)])
    done = batchcal(script, "calibrate", *LIMITS, "--", "python", "check.py", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_both_ranks_of_torchrun_are_observed_and_none_is_left(script: Path) -> None:
    text = SCRIPT.replace("options = parser", "torch.distributed.init_process_group('gloo')\noptions = parser")
    (script / "train.py").write_text(
        text.replace("optimizer = ", "model = torch.nn.parallel.DistributedDataParallel(model)\noptimizer = ")
    )
    done = batchcal(script, "calibrate", *LIMITS, "--json", "--", "torchrun", "--nproc-per-node", "2", "train.py")
    assert done.returncode == 0, done.stderr
    observed = json.loads(done.stdout)
    assert (observed["world_size"], observed["rows"]) == (2, 32)
    left = subprocess.run(["pgrep", "-f", str(script / "train.py")], capture_output=True, text=True, check=False)
    assert not left.stdout
