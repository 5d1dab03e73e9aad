"""Samples are read and compared as a DataLoader reads them, whatever the dataset returns."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, Subset

from batchcal.measure.workers.child import examine
from batchcal.measure.workers.kept_memory import kept_by_reading
from batchcal.measure.workers.reading import Digests, SampleRequest, _failure
from tests.measure.workers.tasks import Rows, task_of


class OnlyTogether(Dataset[object]):
    """Stacked batches, and no `__getitem__`."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift, self.read = shift, 0

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: Sequence[int]) -> object:
        self.read += 1
        return {"inputs": torch.tensor(indices, dtype=torch.float32) + self.shift, "labels": torch.tensor(indices)}


class Opened(Rows):
    """An open file that another process opens for itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.file: BufferedReader | None = path.open("rb")

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "file": None}


def test_a_dataset_with_only_getitems_can_be_read() -> None:
    data = OnlyTogether()
    assert kept_by_reading(data, 0, read_s=0.05) == 0.0
    assert data.read == 8
    assert kept_by_reading(Subset(data, [1, 2]), 0, read_s=0.05) == 0.0
    assert data.read == 10


def test_the_values_of_a_stacked_batch_are_compared() -> None:
    requests = [SampleRequest(index, digest=True) for index in (5, 1, 3)]
    here, there = (Digests(OnlyTogether(shift), 0).__getitems__(requests) for shift in (0.0, 1.0))
    assert len(here) == len(there) == 3, "one digest for each index"
    assert all(one != other for one, other in zip(here, there, strict=True))
    assert here == Digests(OnlyTogether(), 0).__getitems__(requests)
    assert Digests(OnlyTogether(), 0).__getitems__([SampleRequest(2, digest=False), SampleRequest(3, digest=False)]) == ["", ""]


@pytest.mark.parametrize(
    ("message", "failure"),
    [
        ("DataLoader timed out after 3 seconds", "hang"),
        ("Caught OperationalError in DataLoader worker process 0.\nTraceback\nOperationalError: connection timed out", "raise"),
        ("the lock timed out", "raise"),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", "die"),
    ],
)
def test_a_timeout_of_the_dataset_is_not_a_hang(message: str, failure: str) -> None:
    assert _failure(RuntimeError(message)) == failure


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers are not forked here")
def test_an_unpicklable_collate_function_excludes_other_start_methods(tmp_path: Path) -> None:
    path = tmp_path / "records.bin"
    path.touch()
    task = replace(task_of(Opened(path)), collate_fn=lambda samples: samples)
    answer = examine(task, workers=1, seed=0, read_s=0.05, hang_s=20.0, anonymous_before=0)
    assert answer.does_not_pickle.startswith("its collate_fn cannot be pickled: ")
    assert "lambda" in answer.does_not_pickle
