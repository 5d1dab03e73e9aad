"""Models and data that are merely unusual."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import IterableDataset

from batchcal.workload.task import Task
from tests.faults.tasks_plain import FEATURES, Numbers, Wide, plain, task_of


class Normed(nn.Module):
    """BatchNorm, which refuses a batch of one sample while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.wide = Wide()

    def forward(self, inputs: Tensor) -> Tensor:
        result = self.wide(self.norm(inputs))
        assert isinstance(result, Tensor)
        return result


def normed(samples: int = 20_000) -> Task:
    return task_of(Normed(), Numbers(samples))


class Branching(nn.Module):
    """What it computes depends on the data, which a tracer without data cannot follow."""

    def __init__(self, mib: float) -> None:
        super().__init__()
        self.wide = Wide(mib)

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = inputs[inputs.sum(dim=1) > -1]
        if float(chosen.sum()) < 0:
            chosen = -chosen
        result = self.wide(chosen)
        assert isinstance(result, Tensor)
        return result


def branching(mib: float = 1.0) -> Task:
    return task_of(Branching(mib))


def contrastive(width: int = 32) -> Task:
    """Compares every sample with every other: memory grows with the square of the batch."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        embedded = functional.normalize(model(batch), dim=1)
        return functional.cross_entropy(embedded @ embedded.T, torch.arange(len(embedded)))

    return dataclasses.replace(task_of(nn.Linear(FEATURES, width)), loss=loss)


class Stream(IterableDataset[object]):
    """Can only be read in order, and never ends."""

    def __iter__(self) -> Iterator[object]:
        index = 0
        while True:
            yield torch.full((FEATURES,), float(index % 7))
            index += 1


def stream() -> Task:
    return task_of(Wide(), Stream())


class Recurrent(nn.Module):
    """A GRU over a long sequence: many small operations."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, 64, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        states, _ = self.gru(inputs[:, None, :].repeat(1, 200, 1))
        result = self.head(states)
        assert isinstance(result, Tensor)
        return result


def recurrent() -> Task:
    return task_of(Recurrent())


def compiled(backend: str) -> Task:
    """torch.compile: the first step of every new shape takes long."""
    task = plain()
    model = nn.Sequential(nn.Linear(FEATURES, 256), nn.GELU(), nn.Linear(256, 4096), nn.ReLU(), nn.Linear(4096, FEATURES), Wide())
    compiled_model: object = torch.compile(model, backend=backend)
    assert isinstance(compiled_model, nn.Module)
    return dataclasses.replace(task, model=compiled_model, optimizer=torch.optim.Adam(compiled_model.parameters()))
