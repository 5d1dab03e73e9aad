"""Tasks whose data is slow, heavy, dies, hangs, lies or ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from batchcal.workload.task import Task


def task_of(data: Dataset[object]) -> Task:
    model = nn.Linear(8, 1)

    def loss(model: nn.Module, batch: object) -> Tensor:
        raise AssertionError("the input pipeline is measured without a step")

    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=data, loss=loss)


class Rows(Dataset[object]):
    def __init__(self, samples: int = 4096) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> object:
        return torch.zeros(8)


class Waiting(Rows):
    """Waits for a disk or a network: workers help, however few cores there are."""

    def __getitem__(self, index: int) -> object:
        time.sleep(0.002)
        return super().__getitem__(index)


class DyingInWorkers(Rows):
    def __getitem__(self, index: int) -> object:
        if get_worker_info() is not None:
            os._exit(3)
        return super().__getitem__(index)


class FailingInWorkers(Rows):
    def __getitem__(self, index: int) -> object:
        if get_worker_info() is not None:
            raise RuntimeError("this handle belongs to another process")
        return super().__getitem__(index)


class Ragged(Rows):
    def __getitem__(self, index: int) -> object:
        return torch.zeros(8 + index % 2)


class Stream(IterableDataset[object]):
    def __iter__(self) -> Iterator[object]:
        for _ in range(40):
            yield torch.zeros(8)


class Hanging(Rows):
    def __getitem__(self, index: int) -> object:
        time.sleep(3600)
        return None


class Heavy(Rows):
    """Every worker takes memory; the process itself takes none."""

    def __getitem__(self, index: int) -> object:
        if get_worker_info() is not None:
            self.held = torch.ones(400 << 18)
        return super().__getitem__(index)


def rows(samples: int = 4096) -> Task:
    return task_of(Rows(samples))


def waiting() -> Task:
    return task_of(Waiting())


def dying_in_workers() -> Task:
    return task_of(DyingInWorkers())


def failing_in_workers() -> Task:
    return task_of(FailingInWorkers())


def ragged() -> Task:
    return task_of(Ragged())


def stream() -> Task:
    return task_of(Stream())


def hanging() -> Task:
    return task_of(Hanging())


def heavy() -> Task:
    return task_of(Heavy())


def broken() -> Task:
    raise ValueError("the path is wrong")
