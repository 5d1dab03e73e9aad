"""Small tasks that train in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from batchcal.workload.task import Task


def points(samples: int, *, seed: int = 0) -> Dataset[object]:
    """Points in eight dimensions, in three classes that a line can part."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 8, generator=generator)
    return TensorDataset(inputs, (inputs @ torch.randn(8, 3, generator=torch.Generator().manual_seed(7))).argmax(dim=1))


def unpacked(batch: object) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch of `points`."""
    assert isinstance(batch, list | tuple)
    inputs, labels = batch
    return inputs, labels


def cross_entropy(model: nn.Module, batch: object) -> Tensor:
    inputs, labels = unpacked(batch)
    return functional.cross_entropy(model(inputs), labels)


def accuracy(model: nn.Module, batch: object) -> Mapping[str, tuple[float, float]]:
    inputs, labels = unpacked(batch)
    return {"accuracy": (float((model(inputs).argmax(dim=1) == labels).sum()), float(len(labels)))}


def a_task(samples: int = 100, *, eval_samples: int = 30, dropout: float = 0.0) -> Task:
    """A small classifier; `dataclasses.replace(a_task(), loss=...)` makes another of it."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3))
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.02),
        train_data=points(samples),
        loss=cross_entropy,
        eval_data=points(eval_samples, seed=1),
        metrics=accuracy,
    )
