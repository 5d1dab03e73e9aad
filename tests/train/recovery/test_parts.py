"""Batches in two halves of the same samples."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from batchcal.runtime.batches import MicroBatch
from batchcal.train.recovery.parts import Splitter
from batchcal.workload.collator import HeterogeneousBatch, HeterogeneousCollator, HeterogeneousSample


class Spent(Dataset[object]):
    """Cannot be read again."""

    def __getitem__(self, index: int) -> object:
        raise AssertionError(f"sample {index} was loaded anew")


def test_a_batch_that_knows_how_to_be_cut_is_cut_and_not_loaded_anew() -> None:
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
