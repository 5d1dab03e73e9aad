"""A file that a dataset opens on its first read: workers are forked before this process has read anything."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from batchcal.train.loop import train
from batchcal.train.memory.predictor import MemoryPredictor, straight_line
from batchcal.train.options import TrainOptions
from batchcal.workload.task import Task
from tests.support.plans import a_plan

ROWS = 240
RECORD = 8


class OpensLater(Dataset[object]):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> object:
        if self.descriptor is None:
            self.descriptor = os.open(self.path, os.O_RDONLY)
        os.lseek(self.descriptor, index * RECORD, os.SEEK_SET)
        time.sleep(0.0005)
        found = int.from_bytes(os.read(self.descriptor, RECORD), "little")
        return torch.tensor([float(found), float(index)])


@pytest.mark.child
@pytest.mark.parametrize("batching", ["plain", "bucketed"])
@pytest.mark.parametrize("predictor", [None, straight_line(1 << 27, 16, 1 << 28, 8.0)], ids=["guessed", "known"])
def test_workers_read_the_records_that_belong_to_their_indices(
    batching: str, predictor: MemoryPredictor | None, tmp_path: Path
) -> None:
    path = tmp_path / "records.bin"
    path.write_bytes(b"".join(index.to_bytes(RECORD, "little") for index in range(ROWS)))
    model = nn.Linear(2, 1)
    wrong: list[tuple[float, float]] = []

    def loss(model: nn.Module, batch: object) -> Tensor:
        assert isinstance(batch, Tensor)
        wrong.extend((found, index) for found, index in batch.tolist() if found != index)
        return torch.mean(torch.square(model(batch)))

    def cost(sample: object) -> float:
        return 1.0

    task = Task(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), train_data=OpensLater(path), loss=loss, size_of=cost
    )
    plan = a_plan(16, num_workers=2, prefetch_factor=2, persistent_workers=True)
    options = TrainOptions(epochs=1) if batching == "plain" else TrainOptions(epochs=1, batching="bucketed")
    train(task, plan, options, predictor=predictor)
    assert wrong == []
