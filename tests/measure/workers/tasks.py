"""Tasks whose data does not bear workers, or only some kinds of them, or makes them grow."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from io import BufferedReader
from multiprocessing.pool import Pool
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from batchcal.workload.task import Task

RECORD = 512
COUNT = 600


def task_of(data: Dataset[object]) -> Task:
    model = nn.Linear(8, 1)

    def loss(model: nn.Module, batch: object) -> Tensor:
        raise AssertionError("workers are tried without a step")

    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=data, loss=loss)


def records_in(folder: str) -> Path:
    """A file of records, each filled with its number."""
    path = Path(folder) / "records.bin"
    path.write_bytes(b"".join(bytes([number % 251]) * RECORD for number in range(COUNT)))
    return path


class Rows(Dataset[object]):
    def __init__(self, samples: int = COUNT) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> object:
        return torch.full((8,), float(index))


class ByNumber(Rows):
    """Seeks in a descriptor that is a mere number: only the samples show that workers share its place."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.descriptor = os.open(records_in(folder), os.O_RDONLY)

    def __getitem__(self, index: int) -> object:
        os.lseek(self.descriptor, index * RECORD, os.SEEK_SET)
        time.sleep(0.0005)
        return torch.frombuffer(bytearray(os.read(self.descriptor, RECORD)), dtype=torch.uint8)


class OpenedLater(Rows):
    """Opens its file on the first read, as it should."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = records_in(folder)
        self.file: BufferedReader | None = None

    def __getitem__(self, index: int) -> object:
        if self.file is None:
            self.file = self.path.open("rb")
        self.file.seek(index * RECORD)
        return torch.frombuffer(bytearray(self.file.read(RECORD)), dtype=torch.uint8)


class Reopened(OpenedLater):
    """Opens its file at once, and again in a process that is sent it."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.file = self.path.open("rb")

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "file": None}


class Augmented(Rows):
    """Random by the global generators, which every worker seeds for itself."""

    def __getitem__(self, index: int) -> object:
        return torch.full((8,), float(index)) + torch.rand(8) + random.random()


class OwnGenerator(Rows):
    """Random by a generator of its own, of which every worker has a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(0)

    def __getitem__(self, index: int) -> object:
        return index + self.random.random()


class Pooled(Rows):
    """A pool of processes of its own, from the first read on."""

    pool: Pool | None = None

    def __getitem__(self, index: int) -> object:
        if self.pool is None:
            self.pool = multiprocessing.get_context("fork").Pool(1)
        return self.pool.apply(float, (index,))


class HangingInWorkers(Rows):
    def __getitem__(self, index: int) -> object:
        if get_worker_info() is not None:
            time.sleep(3600)
        return super().__getitem__(index)


class Table(Rows):
    """Many small Python objects: reading one writes its reference count, and the page is copied."""

    def __init__(self, rows: int = 400_000) -> None:
        super().__init__(rows // 20)
        self.rows: list[list[float | str]] = [[float(row), str(row)] for row in range(rows)]

    def __getitem__(self, index: int) -> object:
        return sum(float(number) for number, _ in self.rows[index * 20 : index * 20 + 20])


class Caching(Rows):
    """Keeps every sample that it has read."""

    def __init__(self, samples: int = 2000) -> None:
        super().__init__(samples)
        self.cache: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> object:
        if index not in self.cache:
            self.cache[index] = torch.full((16_384,), float(index))
        return self.cache[index][:8]


IN_A_FILE: dict[str, Callable[[str], Dataset[object]]] = {
    "ByNumber": ByNumber,
    "OpenedLater": OpenedLater,
    "Reopened": Reopened,
}
IN_MEMORY: dict[str, Callable[[], Dataset[object]]] = {
    "Rows": Rows,
    "Augmented": Augmented,
    "OwnGenerator": OwnGenerator,
    "Pooled": Pooled,
    "HangingInWorkers": HangingInWorkers,
    "Table": Table,
    "Caching": Caching,
}


class Numbered(OpenedLater):
    """Records with their index, so that a step can tell them from others."""

    def __getitem__(self, index: int) -> object:
        return super().__getitem__(index), index


def checked(folder: str) -> Task:
    """A step that fails with the record of another sample."""
    model = nn.Linear(1, 1)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        records, indices = batch
        if not bool((records[:, 0].long() == indices % 251).all()):
            raise ValueError("the record of another sample")
        output: Tensor = model(records[:, :1].float() / 251)
        return output.square().mean()

    data: Dataset[object] = Numbered(folder)
    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=data, loss=loss)


def cached() -> Task:
    """A step on data that keeps what it has read."""
    model = nn.Linear(8, 1)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        output: Tensor = model(batch / 2000)
        return output.square().mean()

    data: Dataset[object] = Caching()
    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_data=data, loss=loss)


def table(rows: int = 800_000) -> Task:
    """A step whose memory grows with its batch, on a table of small Python objects."""
    model = nn.Sequential(nn.Linear(1, 2048), nn.ReLU(), nn.Linear(2048, 1))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        output: Tensor = model(batch.float().unsqueeze(1) / 1e8)
        return output.square().mean()

    data: Dataset[object] = Table(rows)
    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-6), train_data=data, loss=loss)


def plain_epoch(batch: int, workers: int) -> None:
    """What a user writes: one epoch of `table` with a DataLoader and nothing of batchcal."""
    one = table()
    loader: DataLoader[object] = DataLoader(
        one.train_data, batch_size=batch, num_workers=workers, shuffle=True, persistent_workers=workers > 0
    )
    for fetched in loader:
        one.optimizer.zero_grad()
        one.loss(one.model, fetched).backward()
        one.optimizer.step()
    print("epoch done")


def task(kind: str = "Rows", folder: str = "") -> Task:
    return task_of(IN_A_FILE[kind](folder) if folder else IN_MEMORY[kind]())
