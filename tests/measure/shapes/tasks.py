"""A task that refuses what is too wide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from batchcal.workload.task import Task
from tests.measure.tasks import FEATURES, Numbers


def narrow(width: int = 16) -> Task:
    if width > 100:
        raise ValueError("too wide")
    model = nn.Linear(FEATURES, width)

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Tensor)
        outputs: Tensor = model(batch)
        return outputs.square().mean()

    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=Numbers(), loss=loss)
