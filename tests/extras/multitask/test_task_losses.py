"""A training whose task losses are weighed by GradNorm: recovered from, resumed, told."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from batchcal.core.errors import Interrupted, UsageError
from batchcal.core.progress import Recorded
from batchcal.extras.multitask.task_losses import TaskLosses, weighed
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.starving import Guarded, Memory
from tests.support.tasks import a_task, unpacked
from tests.support.trainings import SignalAt

CPU = torch.device("cpu")


def losses(model: nn.Module, batch: object) -> Mapping[str, Tensor]:
    """The class, and a sum that is ten times as steep."""
    inputs, labels = unpacked(batch)
    answers = model(inputs)
    return {"class": functional.cross_entropy(answers, labels), "sum": 10 * (answers.sum(1) - inputs.sum(1)).square().mean()}


def two_tasks(samples: int = 96, memory: Memory | None = None) -> Task:
    task = a_task(samples)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), memory or nn.Identity(), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return replace(task, model=model, optimizer=optimizer, losses=losses, loss=plain_sum)


def plain_sum(model: nn.Module, batch: object) -> Tensor:
    return torch.stack(list(losses(model, batch).values())).sum()


def parameters(task: Task) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


def test_every_step_reports_the_updated_task_weights() -> None:
    heard = Recorded()
    train(two_tasks(), a_plan(8, 8), TrainOptions(epochs=4, loss_weights="gradnorm"), progress=heard)
    steps = [fields for name, fields in heard.events if name == "step"]
    assert all({"loss_class", "loss_sum", "weight_class", "weight_sum"} <= fields.keys() for fields in steps)
    last = steps[-1]
    assert isinstance(last["weight_class"], float)
    assert isinstance(last["weight_sum"], float)
    assert last["weight_class"] > 1 > last["weight_sum"], "the steep one is held back"
    assert last["weight_class"] + last["weight_sum"] == pytest.approx(2)
    assert any("grad_norm_sum" in fields for fields in steps)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_retried_pass_counts_once_in_gradnorm(where: str, at: int) -> None:
    def trained(memory: Memory) -> tuple[Tensor, dict[str, float]]:
        task, balancer = weighed(two_tasks(memory=memory), "gradnorm")
        assert balancer is not None
        guarded = Guarded(task)
        data = two_tasks().train_data
        for step in range(3):
            batches = [
                MicroBatch(list(torch.utils.data.default_collate([data[index] for index in range(start, start + 8)])), 8)
                for start in (16 * step, 16 * step + 8)
            ]
            run_group(task, batches, device=CPU, scaler=None, guard=guarded)
            balancer.after_step()
        return parameters(task), balancer.log()

    undisturbed, log = trained(Memory())
    disturbed, same = trained(Memory(where, at=at))
    assert torch.equal(disturbed, undisturbed)
    assert same == log


def test_a_resumed_gradnorm_run_ends_with_the_same_parameters(tmp_path: Path) -> None:
    options = TrainOptions(epochs=3, loss_weights="gradnorm")
    whole, stopped, resumed = two_tasks(), two_tasks(), two_tasks()
    train(whole, a_plan(8, 8), options)
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        train(stopped, a_plan(8, 8), options, checkpoint=checkpoint, progress=SignalAt("step", 9, signal.SIGTERM))
    train(resumed, a_plan(8, 8), options, checkpoint=checkpoint, resume=True)
    assert torch.equal(parameters(resumed), parameters(whole))


def test_gradnorm_with_a_single_loss_is_rejected() -> None:
    with pytest.raises(UsageError, match="needs several losses, and the task has one"):
        train(a_task(), a_plan(10), TrainOptions(loss_weights="gradnorm"))


def test_the_loss_of_the_task_is_unchanged_without_gradnorm() -> None:
    task = two_tasks()
    same, balancer = weighed(task, "task")
    assert same is task
    assert balancer is None
    changed, balancer = weighed(task, "gradnorm")
    assert isinstance(changed.loss, TaskLosses)
    assert balancer is not None
