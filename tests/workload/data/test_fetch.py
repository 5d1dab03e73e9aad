"""A batch is read as a DataLoader reads it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from batchcal.core.errors import UserCodeError
from batchcal.guard.children.report import describe, headline
from batchcal.workload.data.fetch import Collate, fetch, reads_together, sample_at, tolerant
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.spec.user_traceback import blame

Batch = tuple[Tensor, Tensor]


def passed(batch: object) -> object:
    return batch


class Columns(Dataset[object]):
    """Whole batches, stacked already; `__getitem__` too."""

    def __init__(self) -> None:
        self.inputs, self.read = torch.arange(40.0).reshape(20, 2), 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> object:
        self.read += 1
        return self.inputs[index], index

    def __getitems__(self, indices: list[int]) -> object:
        return self.inputs[indices], torch.tensor(indices)


class OnlyTogether(Dataset[object]):
    """Lists of samples, and no `__getitem__`."""

    def __len__(self) -> int:
        return 20

    def __getitems__(self, indices: Sequence[int]) -> list[object]:
        return [torch.full((2,), float(index)) for index in indices]


@pytest.mark.parametrize("indices", [[3, 1, 4], [0], [7, 7, 7, 2]])
@pytest.mark.parametrize("dataset", [Columns(), Subset(Columns(), list(range(19, -1, -1)))], ids=["columns", "subset"])
def test_fetch_returns_the_same_batch_as_a_data_loader(dataset: Dataset[object], indices: list[int]) -> None:
    (expected,) = DataLoader(dataset, batch_sampler=[indices], collate_fn=passed)
    batch = fetch(dataset, indices, passed)
    assert isinstance(batch, tuple)
    assert all(torch.equal(*pair) for pair in zip(batch, expected, strict=True))


def test_the_largest_samples_are_fetched_in_one_getitems_call() -> None:
    data = Columns()
    worst = WorstCase(data, passed, [float(index) for index in range(20)])
    batch = worst.batch(3)
    assert isinstance(batch, tuple)
    assert batch[1].tolist() == [19, 18, 17]
    assert data.read == 0


def test_a_dataset_with_only_getitems_is_supported() -> None:
    worst = WorstCase(OnlyTogether())
    sample = sample_at(worst.dataset, 4)
    assert isinstance(sample, Tensor)
    assert sample.tolist() == [4.0, 4.0]
    in_part = sample_at(Subset(OnlyTogether(), [7, 9]), 1)
    assert isinstance(in_part, Tensor)
    assert in_part.tolist() == [9.0, 9.0]
    batch = worst.batch(5)
    assert isinstance(batch, Tensor)
    assert batch.shape == (5, 2)


def without_holes(samples: list[object]) -> object:
    return default_collate([sample for sample in samples if sample is not None])


def test_a_collate_function_that_drops_every_sample_returns_none() -> None:
    collate = pickle.loads(pickle.dumps(Collate(without_holes)))
    assert collate([None, None]) is None
    assert collate([None, 3]).tolist() == [3]
    assert tolerant(None) is None
    assert tolerant(collate) is collate


def test_an_error_of_the_collate_function_is_raised() -> None:
    with pytest.raises(TypeError):
        Collate(without_holes)([None, object()])
    with pytest.raises(IndexError):
        Collate(without_holes)([])


def test_a_subset_uses_getitems_only_if_its_dataset_has_it() -> None:
    alone = TensorDataset(torch.zeros(8))
    assert not reads_together(Subset(Subset(alone, range(6)), range(3)))
    assert reads_together(Subset(Columns(), range(3)))
    assert reads_together(Columns())


class Holes(Dataset[object]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> object:
        return None if index % 3 else torch.ones(index + 1)


def test_a_sample_that_is_none_is_ordered_last_and_has_no_group() -> None:
    worst = WorstCase(Holes(), list, len, lambda sample: str(len(sample)))
    assert sorted(worst.order[:4]) == [0, 3, 6, 9]


class Fails(Dataset[object]):
    """Sample 137 cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> object:
        if index == 137:
            raise self.error
        return torch.zeros(2)


class FailsTogether(Fails):
    def __getitems__(self, indices: Sequence[int]) -> list[object]:
        return [self[index] for index in indices]


@pytest.mark.parametrize(
    ("dataset", "place", "sample"),
    [
        (Fails(OSError("truncated")), 137, "sample 137 of Fails"),
        (Subset(Fails(OSError("truncated")), list(range(130, 140))), 7, "sample 137 of Fails"),
        (FailsTogether(OSError("truncated")), 137, "samples 0, 137 of FailsTogether"),
        (Fails(IndexError("137")), 137, "sample 137 of Fails, whose length is 400"),
    ],
    ids=["alone", "subset", "together", "index"],
)
def test_a_read_error_names_the_sample(dataset: Dataset[object], place: int, sample: str) -> None:
    with pytest.raises((OSError, IndexError)) as raised:
        fetch(dataset, [0, place], None)
    assert describe(raised.value, "measure").headline.endswith(f", while reading {sample}")


def test_a_read_error_during_the_scan_names_the_sample() -> None:
    with pytest.raises(OSError, match="truncated") as raised:
        WorstCase(Fails(OSError("truncated")))
    assert headline(raised.value) == "OSError: truncated, while reading sample 137 of Fails"


def test_the_error_for_samples_that_do_not_stack_suggests_collate_fn() -> None:
    data: list[object] = [torch.zeros(2), torch.zeros(3)]
    with pytest.raises(RuntimeError) as raised:
        fetch(Listed(data), [0, 1], None)
    assert "while torch's default collate function stacked samples of Listed" in headline(raised.value)
    assert "collate_fn" in blame(raised.value, "training train.py:task", try_="-v").try_


def test_the_error_for_a_sample_that_is_none_names_the_sample() -> None:
    data: list[object] = [torch.zeros(2), torch.zeros(2), None]
    with pytest.raises(TypeError) as raised:
        fetch(Listed(data), [1, 2], None)
    assert headline(raised.value).endswith("stacked samples of Listed, where sample 2 is None")
    with pytest.raises(UserCodeError, match="sample 2 of Listed is None") as refused:
        WorstCase(Listed(data))
    assert "collate_fn" in refused.value.try_
    assert (
        WorstCase(Listed(data), lambda samples: default_collate([sample for sample in samples if sample is not None])).samples
        == 3
    )


class Listed(Dataset[object]):
    def __init__(self, samples: list[object]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> object:
        return self.samples[index]
