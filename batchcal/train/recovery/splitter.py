"""Division of a micro-batch into two smaller ones of the same samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

from torch.utils.data import Dataset

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.row_slices import cut, is_by_sample
from batchcal.workload.data.fetch import fetch, reads_together, tolerant

Part = Callable[[], MicroBatch]


@runtime_checkable
class Sliceable(Protocol):
    """A batch that can cut itself, such as `HeterogeneousBatch`."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> object:
        """Return the samples from `start` up to but excluding `stop`."""
        ...


class Splitter:
    """Splitter of batches by their samples. It collates each half from its indices, or cuts the batch if that is proven equal.

    It is proven for a batch that cuts itself, and for torch's default collate function, which stacks all parts of the samples
    along a first dimension. Any other batch may have rows that are not samples: a list of three images of three channels has
    three rows in each tensor. Its samples are loaded and collated again, so that random augmentation draws again.

    The batches of a stream cannot be loaded again. For a stream, cutting counts as equal if it was equal for the first batch
    (`MicroBatch.cuttable`).
    """

    def __init__(self, data: Dataset[object], collate: Callable[..., object] | None, rule: SizeRule | None = None) -> None:
        self._rule = rule
        self._data = data
        self._collate = tolerant(collate)
        self._stacks = collate is None and not reads_together(data)

    def halves(self, micro_batch: MicroBatch) -> tuple[Part, Part] | None:
        """Return the first half (the larger one of an odd number) and the rest. Each is created when it is called.

        None: one sample, halves that the task does not accept, or a batch of a stream that cannot be cut.
        """
        samples, indices = micro_batch.samples, micro_batch.indices
        middle = self.middle(samples)
        if not middle:
            return None
        if isinstance(micro_batch.batch, Sliceable) and len(micro_batch.batch) == samples:
            batch = micro_batch.batch
            return partial(_rows, batch, indices, 0, middle), partial(_rows, batch, indices, middle, samples)
        if (self._stacks or micro_batch.cuttable) and is_by_sample(micro_batch.batch, samples):
            return partial(_cut, micro_batch, 0, middle), partial(_cut, micro_batch, middle, samples)
        if indices is None:
            return None
        return partial(self._load, indices[:middle]), partial(self._load, indices[middle:])

    def middle(self, samples: int) -> int:
        """Return the number of samples of the first half. 0: there are no halves."""
        if samples < 2:
            return 0
        return samples - samples // 2 if self._rule is None else self._rule.half(samples)

    def _load(self, indices: tuple[int, ...]) -> MicroBatch:
        return MicroBatch(fetch(self._data, indices, self._collate), len(indices), indices)


def _rows(batch: Sliceable, indices: tuple[int, ...] | None, start: int, stop: int) -> MicroBatch:
    return MicroBatch(batch.rows(start, stop), stop - start, None if indices is None else indices[start:stop])


def _cut(micro_batch: MicroBatch, start: int, stop: int) -> MicroBatch:
    """Return views, without a copy."""
    indices = micro_batch.indices
    return MicroBatch(
        cut(micro_batch.batch, start, stop),
        stop - start,
        None if indices is None else indices[start:stop],
        micro_batch.cuttable,
    )
