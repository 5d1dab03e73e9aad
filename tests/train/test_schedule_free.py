"""Checkpoints of optimizers with a training and an evaluation mode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from batchcal.core.errors import Interrupted, UsageError
from batchcal.train.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.workload.model.optimizers import set_mode
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.schedule_free import ScheduleFree
from tests.support.tasks import a_task
from tests.support.trainings import SignalAt, parameters

PLAN, OPTIONS = a_plan(8, 7), TrainOptions(epochs=2)


def schedule_free() -> Task:
    task = a_task(100, dropout=0.4)
    return replace(task, optimizer=ScheduleFree(task.model.parameters(), lr=0.1))


def test_a_checkpoint_contains_the_parameters_of_evaluation_mode(tmp_path: Path) -> None:
    path, task = tmp_path / "run.pt", schedule_free()
    train(task, PLAN, OPTIONS, checkpoint=path)
    trained = parameters(task)
    saved = torch.load(path, weights_only=True)["model"]
    set_mode(task, training=False)
    assert not torch.allclose(parameters(task), trained, rtol=1e-4)
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(saved[name], value)


def test_a_save_does_not_change_the_training_parameters(tmp_path: Path) -> None:
    task = schedule_free()
    train(task, PLAN, OPTIONS)
    before = parameters(task)
    standing = load_checkpoint(_written(tmp_path), schedule_free())
    for _ in range(3):
        save_checkpoint(tmp_path / "again.pt", standing, task=task)
    assert torch.equal(parameters(task), before)
    assert task.optimizer.param_groups[0]["train_mode"]


def _written(folder: Path) -> Path:
    train(schedule_free(), PLAN, OPTIONS, checkpoint=folder / "run.pt")
    return folder / "run.pt"


@pytest.mark.parametrize("stopped_after", [1, 3, 7, 9])
def test_a_resumed_schedule_free_run_matches_an_uninterrupted_run(tmp_path: Path, stopped_after: int) -> None:
    path, undisturbed, resumed = tmp_path / "run.pt", schedule_free(), schedule_free()
    train(undisturbed, PLAN, OPTIONS)
    with pytest.raises(Interrupted):
        train(schedule_free(), PLAN, OPTIONS, checkpoint=path, progress=SignalAt("step", stopped_after))
    train(resumed, PLAN, OPTIONS, checkpoint=path, resume=True)
    assert torch.equal(parameters(resumed), parameters(undisturbed))


def test_a_schedule_free_checkpoint_is_rejected_for_an_optimizer_without_modes(tmp_path: Path) -> None:
    task = a_task(100)
    with pytest.raises(UsageError, match="from another model or optimizer"):
        load_checkpoint(_written(tmp_path), replace(task, optimizer=torch.optim.SGD(task.model.parameters(), lr=0.1)))
