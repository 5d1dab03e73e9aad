"""Batches in two halves of the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset

from batchcal.runtime.batches import MicroBatch, StreamBatches, unchanged
from batchcal.train.recovery.splitter import Part, Splitter
from batchcal.workload.collator import HeterogeneousBatch, HeterogeneousCollator, HeterogeneousSample


class Spent(Dataset[object]):
    """Cannot be read again."""

    def __getitem__(self, index: int) -> object:
        raise AssertionError(f"sample {index} was loaded anew")


def test_a_batch_with_its_own_split_method_is_split_without_loading_samples() -> None:
    samples = [
        HeterogeneousSample(images=[torch.ones(1, 2 + number, 3)] * (1 + number % 2), task_type="T1", label=number)
        for number in range(5)
    ]
    whole = HeterogeneousCollator()(samples)
    halves = Splitter(Spent(), HeterogeneousCollator()).halves(MicroBatch(whole, 5, (5, 6, 7, 8, 9)))
    assert halves is not None
    first, second = (half() for half in halves)
    assert (first.samples, first.indices, second.samples, second.indices) == (3, (5, 6, 7), 2, (8, 9))
    assert isinstance(first.batch, HeterogeneousBatch)
    assert isinstance(second.batch, HeterogeneousBatch)
    assert second.batch.image_counts == (2, 1)
    assert second.batch.labels["T1"].values.tolist() == [3, 4]
    assert torch.equal(first.batch.pixel_values, whole.pixel_values[:3])


class Images(Dataset[object]):
    """Three images of three channels: of each, every part has three rows."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> object:
        return torch.full((3, 8 + index, 8), float(index))


def shapes(part: Part) -> list[tuple[int, ...]]:
    batch = part().batch
    assert isinstance(batch, list)
    return [tuple(image.shape) for image in batch]


def test_a_list_of_images_is_split_by_images() -> None:
    data = Images()
    halves = Splitter(data, list).halves(MicroBatch([data[index] for index in range(3)], 3, (0, 1, 2)))
    assert halves is not None
    assert [shapes(half) for half in halves] == [[(3, 8, 8), (3, 9, 8)], [(3, 10, 8)]]


def test_a_default_collated_batch_is_split_without_loading_samples() -> None:
    batch = [torch.arange(5.0), {"labels": torch.arange(5)}]
    halves = Splitter(Spent(), None).halves(MicroBatch(batch, 5, (0, 1, 2, 3, 4)))
    assert halves is not None
    first = halves[0]().batch
    assert isinstance(first, list)
    assert first[0].tolist() == [0.0, 1.0, 2.0]
    assert first[1]["labels"].tolist() == [0, 1, 2]


class Together(Dataset[object]):
    def __getitems__(self, indices: list[int]) -> object:
        return torch.tensor(indices)


def test_halves_are_read_with_getitems_if_the_dataset_has_it() -> None:
    halves = Splitter(Together(), unchanged).halves(MicroBatch(torch.tensor([4, 2, 9]), 3, (4, 2, 9)))
    assert halves is not None
    parts = [half().batch for half in halves]
    assert [part.tolist() for part in parts if isinstance(part, torch.Tensor)] == [[4, 2], [9]]


class Stream(IterableDataset[object]):
    def __init__(self, samples: Sequence[object]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[object]:
        return iter(self.samples)


def pairs(count: int) -> list[object]:
    return [(torch.full((2,), float(number)), number) for number in range(count)]


def stacked(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([inputs for inputs, _ in samples]), torch.tensor([label for _, label in samples])


def padded(samples: list[Tensor]) -> Tensor:
    return pad_sequence(samples, batch_first=True, padding_value=-1.0)


def against_each_other(samples: list[tuple[Tensor, int]]) -> Tensor:
    """A row and a column for each sample."""
    inputs = torch.stack([inputs for inputs, _ in samples])
    return inputs @ inputs.T


def shuffled(samples: list[tuple[Tensor, int]]) -> object:
    inputs, labels = stacked(samples)
    return inputs[torch.randperm(len(inputs))], labels


@pytest.mark.parametrize(
    ("collate", "samples", "cuttable"),
    [
        (stacked, pairs(6), True),
        (padded, [torch.ones(length) for length in (2, 5, 1, 3, 4, 4)], True),
        (against_each_other, pairs(6), False),
        (shuffled, pairs(6), False),
        (list, [torch.ones(3, 4, 4)] * 6, False),
    ],
)
def test_batches_of_a_stream_are_split_only_if_a_trial_split_is_exact(
    collate: Callable[..., object], samples: list[object], cuttable: bool
) -> None:
    generator = torch.get_rng_state()
    first, second = StreamBatches(Stream(samples), (3,), collate)
    assert (first.cuttable, second.cuttable) == (cuttable, cuttable)
    assert (Splitter(Stream([]), collate).halves(first) is not None) == cuttable
    if collate is not shuffled:
        assert torch.equal(generator, torch.get_rng_state())
