"""Tasks that misbehave in their DataLoader's workers, or on the way from them."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from batchcal.workload.task import Task
from tests.faults.tasks_plain import FEATURES, MIB, Numbers, Wide, mean_loss, task_of, told


class InWorkers(Numbers):
    """Behaves in the main process; a DataLoader worker meets `fault`."""

    def __init__(self, fault: str, tell: str = "") -> None:
        super().__init__(2_000)
        self.fault = fault
        self.tell = tell
        self.held: list[object] = []

    def __getitem__(self, index: int) -> object:
        if get_worker_info() is not None:
            if self.tell:
                told(f"{self.tell}-{os.getpid()}")
            misbehave(self.fault, self.held)
        return super().__getitem__(index)


def misbehave(fault: str, held: list[object]) -> None:
    match fault:
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "stuck":
            time.sleep(3600)
        case "raises":
            raise KeyError("no such sample")
        case "holds" if not held:
            held.append(np.ones(100 * MIB, dtype=np.uint8))
        case "grows":
            held.append(np.ones(8 * MIB, dtype=np.uint8))


def in_workers(fault: str, tell: str = "") -> Task:
    return task_of(Wide(0.1), InWorkers(fault, tell))


class Images(Numbers):
    """Each sample has `mib` MiB, which travels from a worker through shared memory."""

    def __init__(self, mib: float) -> None:
        super().__init__(2_000)
        self.numbers = int(mib * MIB) // 4

    def __getitem__(self, index: int) -> object:
        return torch.ones(self.numbers)


class First(nn.Module):
    """Looks at no more than the first values of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 1)

    def forward(self, batch: Tensor) -> Tensor:
        result = self.linear(batch[:, :FEATURES])
        assert isinstance(result, Tensor)
        return result


def images(mib: float = 1.0) -> Task:
    return task_of(First(), Images(mib))


class ManyTensors(Numbers):
    """A sample of so many tensors that a batch of them needs that many descriptors on its way from a worker."""

    def __getitem__(self, index: int) -> object:
        return [torch.ones(FEATURES) for _ in range(200)]


def many_tensors() -> Task:
    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        return mean_loss(model, batch[0])

    return dataclasses.replace(task_of(Wide(0.1), ManyTensors(500)), loss=loss)


def unpicklable_collate(samples: list[Tensor]) -> object:
    return [torch.stack(samples), lambda: 0]


def unpicklable() -> Task:
    """A batch that cannot travel from a worker."""

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, list)
        return mean_loss(model, batch[0])

    return dataclasses.replace(task_of(Wide(0.1)), collate_fn=unpicklable_collate, loss=loss)
