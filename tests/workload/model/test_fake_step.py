"""What a step holds at once, block by block; and a task that is lent for steps on paper."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from batchcal.core.errors import UserCodeError
from batchcal.measure.inside.static import profiled_curve
from batchcal.workload.model.fake_step import LiveBlocks, TraceTimedOut, fake_step
from batchcal.workload.task import Task


def test_live_blocks_records_the_blocks_at_the_peak() -> None:
    with LiveBlocks() as blocks:
        first = torch.empty(1024, dtype=torch.uint8)
        second = torch.empty(4096, dtype=torch.uint8)
        del first
        third = torch.empty(512, dtype=torch.uint8)
        del second, third
        torch.empty(2048, dtype=torch.uint8)
    assert sorted(blocks.peak) == [1024, 4096]


def test_an_operation_after_the_time_is_up_raises() -> None:
    with pytest.raises(TraceTimedOut), LiveBlocks(until_s=0.0):
        torch.ones(1)


def test_live_blocks_counts_neither_views_nor_earlier_tensors() -> None:
    there = torch.ones(1000)
    with LiveBlocks() as blocks:
        blocks.ignore([there])
        there.add_(1)
        half = there[:500]
        copy = half.clone()
        assert copy.view(250, 2).shape == (250, 2)
    assert blocks.peak == (2000,)


class Noisy(nn.Module):
    """Everything a step may leave behind: statistics, an attribute, random numbers, a second list of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(8, 16, batch_first=True)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.last: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, _ = self.recurrent(inputs)
        self.last = self.dropout(self.norm(outputs[:, -1]))
        return self.last


def mean_square(model: nn.Module, batch: object) -> Tensor:
    outputs: Tensor = model(batch)
    return outputs.square().mean()


def task_of(model: nn.Module, optimizer: Optimizer | None = None, loss: Callable[..., Tensor] = mean_square) -> Task:
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    return Task(model=model, optimizer=optimizer, train_data=TensorDataset(torch.ones(4, 8)), loss=loss)


def test_a_fake_step_restores_the_task() -> None:
    model = Noisy()
    model.eval()
    task = task_of(model)
    given = [torch.ones_like(parameter) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), given, strict=True):
        parameter.grad = gradient
    before, state = dict(vars(model.recurrent)), deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    with fake_step(task) as paper:
        assert paper.peak_bytes(torch.ones(4, 3, 8)) > 0
        assert paper.optimizer().state_bytes > 0
        assert type(vars(model)["last"]) is FakeTensor
    assert vars(model)["last"] is None
    assert not model.training
    assert vars(model.recurrent) == before
    assert not any(isinstance(one, FakeTensor) for one in (*model.parameters(), *model.buffers()))
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), given, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not task.optimizer.state
    assert task.optimizer.param_groups[0]["params"][0] is next(model.parameters())


def test_a_failed_fake_step_restores_the_task() -> None:
    def peeping(model: nn.Module, batch: object) -> Tensor:
        loss = mean_square(model, batch)
        return loss * loss.item()

    model = nn.Linear(8, 8)
    with fake_step(task_of(model, loss=peeping)) as paper, pytest.raises(UserCodeError, match="cannot run on fake tensors"):
        paper.peak_bytes(torch.ones(2, 8))
    assert not isinstance(model.weight, FakeTensor)
    assert model.weight.grad is None


def test_the_peak_of_a_fake_step_matches_a_real_step() -> None:
    """Above the gradients, which are there before on paper."""
    model = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 1))
    task = task_of(model)
    with fake_step(task) as paper:
        told = paper.peak_bytes(torch.ones(16, 8))
    real = {
        point.batch: point.bytes
        for point in profiled_curve(task, lambda size: torch.ones(size, 8), ("train",), ceiling=16)["train"]
    }
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    assert told <= real[16] <= told + gradients


def test_a_fake_step_does_not_modify_parameters_outside_the_model() -> None:
    temperature = nn.Parameter(torch.ones(()))
    model = nn.Linear(8, 8)
    task = task_of(
        model,
        torch.optim.Adam([*model.parameters(), temperature]),
        loss=lambda model, batch: mean_square(model, batch) * temperature.exp(),
    )
    with fake_step(task) as paper:
        paper.peak_bytes(torch.ones(2, 8))
        assert paper.optimizer().state_bytes >= 2 * (64 + 8 + 1) * 4
    assert temperature.grad is None
    assert temperature.item() == 1.0


VALUES: dict[str, tuple[Callable[..., Optimizer], float]] = {
    "SGD": (partial(torch.optim.SGD, lr=0.1), 0),
    "SGD with momentum": (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 1),
    "Adam": (torch.optim.Adam, 2),
    "AdamW with amsgrad": (partial(torch.optim.AdamW, amsgrad=True), 3),
    "RMSprop": (torch.optim.RMSprop, 1),
    "Adagrad, whose state is there from the first": (torch.optim.Adagrad, 1),
}


@pytest.mark.parametrize("name", VALUES)
def test_the_optimizer_state_size_is_predicted_before_the_first_step(name: str) -> None:
    make, values = VALUES[name]
    model = nn.Linear(64, 64)
    with fake_step(task_of(model, make(model.parameters()))) as paper:
        told = paper.optimizer()
    assert told.state_bytes == pytest.approx(values * 4 * (64 * 64 + 64), abs=100)


def test_an_optimizer_without_fake_tensor_support_is_estimated_with_a_note() -> None:
    model = nn.Linear(64, 64)
    with fake_step(task_of(model, torch.optim.LBFGS(model.parameters()))) as paper:
        told = paper.optimizer()
    assert told.state_bytes == 2 * 4 * (64 * 64 + 64)
    assert told.note.startswith("LBFGS cannot run on fake tensors")
