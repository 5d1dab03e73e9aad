"""What tests look at in a training, and what ends one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from batchcal.core.progress import Named
from batchcal.workload.task import Task
from tests.support.tasks import points


def parameters(task: Task) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


class SignalAt:
    """Sends a signal to this process when the n-th event of a name comes."""

    def __init__(self, name: str, nth: int, number: int = signal.SIGTERM) -> None:
        self.name = name
        self.left = nth
        self.number = number

    def event(self, event: Named, /) -> None:
        self.left -= event.event_name == self.name
        if event.event_name == self.name and self.left == 0:
            os.kill(os.getpid(), self.number)


class InOrder(IterableDataset[object]):
    def __init__(self, count: int) -> None:
        self.data = points(count)
        self.count = count

    def __iter__(self) -> Iterator[object]:
        return (self.data[index] for index in range(self.count))
