"""The whole command stays within the memory and time that it was given, whatever the user's code does."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from batchcal.core.units import GIB, MIB
from tests.support.cgroups import MemoryCgroup, memory_cgroup, needs_memory_cgroup
from tests.support.children import REPOSITORY

pytestmark = [pytest.mark.child, pytest.mark.cgroup, pytest.mark.slow, needs_memory_cgroup]

TASK = """
def task():
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data = torch.utils.data.TensorDataset(torch.randn(512, 8))
    return batchcal.Task(model=model, optimizer=optimizer, train_data=data, loss=lambda m, batch: m(batch[0]).square().mean())
"""
IMPORTS = "import time, batchcal, torch\nfrom torch import nn\n"

SLEEPING_IMPORT = "import time\ntime.sleep(60)\n" + IMPORTS + TASK
HANGING_FACTORY = IMPORTS + "def task():\n    while True:\n        time.sleep(1)\n"
HANGING_STEP = IMPORTS + TASK.replace(
    "loss=lambda m, batch: m(batch[0]).square().mean()",
    "loss=lambda m, batch: m(batch[0]).square().mean() if len(batch[0]) <= 40 else time.sleep(60)",
)
SLOW_DATA = (
    IMPORTS
    + """
class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4096
    def __getitem__(self, index):
        time.sleep(1)
        return (torch.randn(8),)
"""
    + TASK.replace("torch.utils.data.TensorDataset(torch.randn(512, 8))", "Slow()")
)
HUGE = (
    IMPORTS
    + """
class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
    def forward(self, inputs):
        return torch.exp((inputs * self.weight).repeat(1, 60_000_000).sin())
"""
    + TASK.replace("nn.Linear(8, 1)", "Huge()")
)
RECORDS = (
    IMPORTS
    + """
class Record:
    def __init__(self, values):
        self.values = values

class Records(torch.utils.data.Dataset):
    def __len__(self):
        return 2000
    def __getitem__(self, index):
        return Record(torch.randn(20_000 if index > 1500 and index % 100 == 77 else 20, 32))

def collate(records):
    return torch.cat([record.values for record in records])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 256), nn.Linear(256, 1)
    def forward(self, values):
        return self.last(torch.relu(self.first(values)).exp().sin())
"""
    + TASK.replace("nn.Linear(8, 1)", "Net()")
    .replace("torch.utils.data.TensorDataset(torch.randn(512, 8))", "Records()")
    .replace("m(batch[0])", "m(batch)")
    .replace("train_data=data,", "train_data=data, collate_fn=collate,")
)
EPOCH = """
import sys, torch
sys.path.insert(0, {folder!r})
torch.set_num_threads(2)
import train
task = train.task()
loader = torch.utils.data.DataLoader(task.train_data, batch_size={batch}, collate_fn=task.collate_fn, shuffle=True)
for batch in loader:
    task.optimizer.zero_grad()
    task.loss(task.model, batch).backward()
    task.optimizer.step()
"""


class Run:
    """One `batchcal calibrate` in a memory group."""

    def __init__(self, folder: Path, source: str, group: MemoryCgroup, *flags: str) -> None:
        (folder / "train.py").write_text(source)
        command = [
            sys.executable,
            "-m",
            "batchcal",
            "calibrate",
            "train.py:task",
            "--output",
            "calibration.json",
            "--json",
            *flags,
        ]
        began = time.monotonic()
        done = group.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=120)
        self.wall_s = time.monotonic() - began
        self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        assert group.oom_kills() == 0


def test_the_command_stays_within_the_memory_limit_if_no_sample_fits(tmp_path: Path) -> None:
    with memory_cgroup(4 * GIB) as group:
        run = Run(tmp_path, HUGE, group, "--memory-limit", "1000MiB", "--time-limit", "20s")
        # Of the command itself some 45 MiB, of its zygote what a child does not share.
        assert group.peak_bytes() - group.stat()["total_cache"] < 1200 * MIB
    assert (run.code, run.wall_s < 20 * 1.25 + 3) == (4, True), run.stderr
    assert "nothing fits" in run.stderr


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        pytest.param(SLEEPING_IMPORT, {6}, id="import"),
        pytest.param(HANGING_FACTORY, {6}, id="factory"),
        pytest.param(HANGING_STEP, {0, 5, 6}, id="step"),
        pytest.param(SLOW_DATA, {0, 6}, id="data"),
    ],
)
def test_the_command_ends_at_the_time_limit_and_names_it(tmp_path: Path, source: str, codes: set[int]) -> None:
    with memory_cgroup(2 * GIB) as group:
        run = Run(tmp_path, source, group, "--time-limit", "8s")
    assert run.wall_s < 8 * 1.25 + 3, run.stderr
    assert run.code in codes, run.stderr
    if run.code == 6:
        assert "the time limit of 8 s (--time-limit)" in run.stderr


def test_a_plain_epoch_with_custom_sample_objects_fits_at_the_result(tmp_path: Path) -> None:
    with memory_cgroup(1200 * MIB) as group:
        run = Run(tmp_path, RECORDS, group, "--time-limit", "30s")
        assert run.code == 0, run.stderr
        finding = json.loads((tmp_path / "calibration.json").read_text())["findings"][0]
        script = EPOCH.format(folder=str(tmp_path), batch=finding["train"]["batch"])
        plain = group.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=120)
        assert (plain.returncode, group.oom_kills()) == (0, 0), plain.stderr
