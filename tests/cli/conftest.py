"""A project with a task of its own, and a calibration of it that is fresh here and now."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from batchcal.calibration.fingerprint import fingerprint_of
from batchcal.calibration.schema import TIME_TO_LIVE, Calibration
from batchcal.calibration.store import save
from batchcal.core.clock import SystemClock
from batchcal.detect.detect import detect
from batchcal.workload.spec.identity import identify
from batchcal.workload.spec.reference import TaskReference
from tests.support.calibrations import a_calibration, options

TASK = """\
import torch
import batchcal


def task(fail: bool = False):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 8, generator=generator)
    data = [(row, row.sum().unsqueeze(0)) for row in inputs]
    model = torch.nn.Linear(8, 1)

    def loss(model, batch):
        if fail:
            raise ValueError("shapes do not match")
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    return batchcal.Task(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), train_data=data, eval_data=data[:32], loss=loss
    )
"""

Calibrated = Callable[..., Calibration]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where we are: batchcal.toml names task.py."""
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "batchcal.toml").write_text('[task]\nspec = "task.py:task"\n[plan]\neffective_batch = 96\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calibrated(project: Path) -> Calibrated:
    """Writes a calibration of the project as this machine would have made it; overrides replace whole fields."""

    def write(**overrides: object) -> Calibration:
        here, now = detect(), SystemClock().now() - timedelta(hours=1)
        # The config that names the task does not enter its identity.
        identity = identify(TaskReference(spec="task.py:task", directory=str(project)))
        wanted = options(**({"samples": 32} if here.memory.limit.value >= 4 << 30 else {}))
        values: dict[str, object] = {
            "environment": here,
            "task": identity,
            "options": wanted,
            "fingerprint": fingerprint_of(here, identity, wanted, environ=os.environ),
            "created_at": now,
            "expires_at": now + TIME_TO_LIVE,
        }
        calibration = a_calibration(**(values | overrides))
        save(calibration, project / ".batchcal" / "calibration.json")
        return calibration

    return write
