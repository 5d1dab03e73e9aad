"""Tasks whose model is small and whose data takes its time, or dies in a worker."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from batchcal.workload.task import Task
from tests.measure.pipeline.tasks import DyingInWorkers, Rows, Waiting


def task_of(data: Dataset[object]) -> Task:
    model = nn.Linear(8, 1)

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Tensor)
        outputs: Tensor = model(batch)
        return outputs.square().mean()

    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=data, loss=loss)


def waiting() -> Task:
    return task_of(Waiting())


def dying() -> Task:
    return task_of(DyingInWorkers())


def few() -> Task:
    """25 samples."""
    return task_of(Rows(25))


def penalised() -> Task:
    """The loss computes a gradient of its own, which an evaluation without gradients refuses. There is no evaluation data."""
    task = task_of(Rows(64))

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Tensor)
        inputs = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        return (slope.square().sum(1) - 1).square().mean()

    return replace(task, loss=loss)


class Unforkable(Dataset[object]):
    """Holds something that a forked process must not use, as handles of databases and of drivers are; it may be opened anew."""

    def __init__(self) -> None:
        self._opened_by = os.getpid()

    def __len__(self) -> int:
        return 1024

    def __getitem__(self, index: int) -> Tensor:
        if os.getpid() != self._opened_by:
            os.kill(os.getpid(), signal.SIGSEGV)
        return torch.full((8,), float(index))

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self._opened_by = os.getpid()


def unforkable() -> Task:
    return task_of(Unforkable())
