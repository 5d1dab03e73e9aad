"""The answer with workers survives a plain epoch in a container of the limit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from batchcal.core.units import MIB
from tests.support.cgroups import memory_cgroup, needs_memory_cgroup
from tests.support.children import REPOSITORY

pytestmark = [pytest.mark.child, pytest.mark.slow, pytest.mark.cgroup, needs_memory_cgroup]

LIMIT_MIB = 1300
"""The process holds about 430 MiB at rest, and two workers come to copy 190 MiB each, which is more than the margin."""


def test_an_epoch_with_two_copying_workers_fits_at_the_capacity(tmp_path: Path) -> None:
    output = tmp_path / "calibration.json"
    command = [sys.executable, "-m", "batchcal", "calibrate", "tests.measure.workers.tasks:table", "--workers", "2", "--json"]
    limits = ["--time-limit", "40s", "--allocator", "default", "--objective", "memory", "--output", str(output)]
    with memory_cgroup(LIMIT_MIB * MIB) as group:
        done = group.run([*command, *limits], timeout=120, cwd=REPOSITORY)
        assert group.oom_kills() == 0
        assert done.returncode == 0, done.stderr
    calibration = json.loads(output.read_text())
    budget, capacity = calibration["budgets"][0], calibration["findings"][0]["train"]
    assert budget["reserved_bytes"] > 200 * MIB
    with memory_cgroup(LIMIT_MIB * MIB) as group:
        epoch = f"from tests.measure.workers.tasks import plain_epoch; plain_epoch({capacity['batch']}, 2)"
        done = group.run([sys.executable, "-c", epoch], timeout=120, cwd=REPOSITORY)
        assert group.oom_kills() == 0
        assert done.stdout.strip() == "epoch done", done.stderr
