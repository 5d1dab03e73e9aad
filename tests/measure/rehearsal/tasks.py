"""Tasks whose model is small and whose data takes its time, or dies in a worker."""

from __future__ import annotations

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
