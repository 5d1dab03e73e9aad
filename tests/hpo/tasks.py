"""A task for studies: small, quick, and wrong in whatever way its arguments say."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from batchcal.workload.task import Task


def task(
    device: torch.device,
    *,
    width: int = 8,
    learning_rate: float = 0.1,
    samples: int = 200,
    fault: str = "none",
) -> Task:
    """A line is learned by a model with a hidden layer of `width`."""
    if fault == "raise":
        raise ValueError("a width that this model does not like")
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 4, generator=generator)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(samples, generator=generator)
    held_out = samples // 5
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0)).to(device)
    calls = 0
    kept: list[torch.Tensor] = []

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hang":
                time.sleep(3600)
            if fault == "leak":
                kept.append(torch.ones(16 << 20))
        given, wanted = batch
        return functional.mse_loss(model(given), wanted)

    return Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=learning_rate),
        train_data=TensorDataset(inputs[held_out:], targets[held_out:]),
        eval_data=TensorDataset(inputs[:held_out], targets[:held_out]),
        loss=loss,
        metrics=lambda model, batch: {"mse": (float((model(batch[0]) - batch[1]).square().sum()), float(len(batch[0])))},
        label_of=lambda sample: bool(sample[1] > 0),
    )
