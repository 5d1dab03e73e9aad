from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from batchcal.core.errors import UserCodeError
from batchcal.workload.data.loader_as_data import refuse_loader
from batchcal.workload.spec.unsupported import refuse_unsupported
from tests.support.tasks import a_task

DATA: Dataset[object] = TensorDataset(torch.arange(6.0))


class Pairs(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[5, 4], [3, 2], [1, 0]])

    def __len__(self) -> int:
        return 3


class Stream(IterableDataset[object]):
    def __iter__(self) -> Iterator[object]:
        return iter(range(3))


def merge(samples: list[object]) -> object:
    return default_collate(samples)


def first(worker: int) -> None:
    pass


def refused(loader: DataLoader[object]) -> tuple[str, str, str]:
    error = refuse_loader(loader, "train_data", "train.py:task")
    return error.what, error.known, error.try_


@pytest.mark.parametrize(
    "sampler",
    [
        WeightedRandomSampler([1.0] * 6, 6),
        SubsetRandomSampler([0, 3, 5]),
        RandomSampler(TensorDataset(torch.arange(6.0)), replacement=True, num_samples=9),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_error_for_a_loader_with_a_sampler_explains_how_to_keep_it(sampler: Sampler[int]) -> None:
    what, known, try_ = refused(DataLoader(DATA, batch_size=2, sampler=sampler))
    assert what.endswith(f"with the sampler {type(sampler).__name__}")
    assert "loader.dataset alone would ignore" in known
    assert "IterableDataset" in try_
    assert "dataset[index] for index in sampler" in try_
    assert not try_.startswith("train_data=loader.dataset")


def test_the_error_for_a_batch_sampler_suggests_bucketed_batching() -> None:
    what, _, try_ = refused(DataLoader(DATA, batch_sampler=Pairs()))
    assert what.endswith("with the batch sampler Pairs")
    assert "for batch in batch_sampler for index in batch" in try_
    assert "batching = 'bucketed'" in try_


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, batch_size=2),
        DataLoader(DATA, batch_size=2, shuffle=True),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(TensorDataset(torch.arange(6.0))), 2, drop_last=False)),
        DataLoader(Stream(), batch_size=2),
        DataLoader(Stream(), batch_size=None),
    ],
    ids=["in order", "shuffled", "torch's batches", "stream", "stream without batches"],
)
def test_the_error_for_a_plain_loader_suggests_its_dataset(loader: DataLoader[object]) -> None:
    what, _, try_ = refused(loader)
    assert what.endswith("whose train_data is a DataLoader")
    assert try_ == "train_data=loader.dataset"


def test_the_error_for_a_dataset_of_batches_does_not_suggest_it() -> None:
    what, known, try_ = refused(DataLoader(DATA, batch_size=None))
    assert what.endswith("with batch_size=None")
    assert "each item of its dataset is a batch" in known
    assert "loader.dataset" not in try_


def test_the_error_for_a_loader_maps_each_setting_to_its_replacement() -> None:
    loader = DataLoader(DATA, batch_size=2, collate_fn=merge, worker_init_fn=first, drop_last=True, num_workers=1)
    _, _, try_ = refused(loader)
    assert try_.startswith("train_data=loader.dataset; collate_fn=loader.collate_fn; ")
    assert "worker_init_fn" in try_
    assert "--drop-last" in try_
    assert "--workers" in try_


class InOrder:
    def __iter__(self) -> Iterator[object]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (iter([1, 2, 3]), "of type list_iterator, which can be read only once"),
        (InOrder(), "of type InOrder, which is read in order"),
    ],
    ids=["iterator", "no dataset"],
)
def test_data_that_cannot_be_read_again_is_rejected(data: object, why: str) -> None:
    task = a_task()
    object.__setattr__(task, "train_data", data)
    with pytest.raises(UserCodeError, match=why) as raised:
        refuse_unsupported(task, "train.py:task")
    assert "IterableDataset" in raised.value.try_
