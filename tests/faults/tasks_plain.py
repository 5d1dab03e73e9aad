"""The task that misbehaves in no way, and what the tasks that misbehave are made of."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from batchcal.workload.task import Task

MIB: Final = 1 << 20
WARM_UP: Final = 2
FEATURES: Final = 4


class Numbers(Dataset[object]):
    """As many small samples as are wanted."""

    def __init__(self, samples: int = 20_000) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> object:
        return torch.full((FEATURES,), float(index % 7))


class Wide(nn.Module):
    """Holds `mib` MiB of activations for each sample, with next to no parameters."""

    def __init__(self, mib: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(FEATURES))
        self.repeats = int(mib * MIB) // 4 // FEATURES // 2

    def forward(self, inputs: Tensor) -> Tensor:
        wide = (inputs * self.scale).repeat(1, self.repeats)
        return (wide * wide).mean()


def mean_loss(model: nn.Module, batch: object) -> Tensor:
    result = model(batch)
    assert isinstance(result, Tensor)
    return result.mean()


def size_of(batch: object) -> int:
    return batch.shape[0] if isinstance(batch, Tensor) else len(batch) if isinstance(batch, Sequence) else 0


def task_of(model: nn.Module, data: Dataset[object] | None = None) -> Task:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Task(model=model, optimizer=optimizer, train_data=data or Numbers(), loss=mean_loss)


def plain(mib: float = 1.0, samples: int = 20_000) -> Task:
    """Misbehaves in no way."""
    return task_of(Wide(mib), Numbers(samples))


def slow(tell: str, seconds: float = 5.0) -> Task:
    """Takes a mebibyte a sample in every large step, writes its process id to the file `tell`, and then takes its time."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        size = size_of(batch)
        held = torch.ones(size * MIB // 4 if size > WARM_UP else 1)
        if size > WARM_UP:
            told(tell)
            time.sleep(seconds)
        return mean_loss(model, batch) + held[0]

    return dataclasses.replace(plain(0.01), loss=loss)


def told(tell: str) -> None:
    """Written beside and renamed, so that a reader sees a whole number."""
    beside = Path(f"{tell}.part")
    beside.write_text(str(os.getpid()))
    beside.rename(tell)
