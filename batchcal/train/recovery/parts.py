"""A micro-batch as two smaller ones of the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from batchcal.runtime.batches import MicroBatch
from batchcal.workload.step import map_tensors

Part = Callable[[], MicroBatch]


@runtime_checkable
class Sliceable(Protocol):
    """A batch that knows how to be cut, such as `HeterogeneousBatch`."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> object:
        """The samples from `start` up to but without `stop`."""
        ...


class Splitter:
    """Cuts batches as they were collated, where each tensor says by itself where a sample begins; else collates them anew.

    Collated anew, the samples are loaded once more: random augmentation draws again.
    """

    def __init__(self, data: Dataset[object], collate: Callable[..., object] | None) -> None:
        self._data = data
        self._collate: Callable[..., object] = collate or default_collate

    def halves(self, micro_batch: MicroBatch) -> tuple[Part, Part] | None:
        """The first half, the larger one of an odd number, and the rest, each made when it is called.

        None: one sample, or a batch of a stream that cannot be cut.
        """
        samples, indices = micro_batch.samples, micro_batch.indices
        if samples < 2:
            return None
        middle = samples - samples // 2
        if isinstance(micro_batch.batch, Sliceable) and len(micro_batch.batch) == samples:
            whole = micro_batch.batch
            return partial(_rows, whole, indices, 0, middle), partial(_rows, whole, indices, middle, samples)
        if _is_by_sample(micro_batch.batch, samples):
            return partial(_cut, micro_batch, 0, middle), partial(_cut, micro_batch, middle, samples)
        if indices is None:
            return None
        return partial(self._load, indices[:middle]), partial(self._load, indices[middle:])

    def _load(self, indices: tuple[int, ...]) -> MicroBatch:
        return MicroBatch(self._collate([self._data[index] for index in indices]), len(indices), indices)


def _rows(whole: Sliceable, indices: tuple[int, ...] | None, start: int, stop: int) -> MicroBatch:
    return MicroBatch(whole.rows(start, stop), stop - start, None if indices is None else indices[start:stop])


def _cut(micro_batch: MicroBatch, start: int, stop: int) -> MicroBatch:
    """Views: nothing is copied."""
    indices = micro_batch.indices
    return MicroBatch(
        map_tensors(micro_batch.batch, lambda tensor: tensor[start:stop]),
        stop - start,
        None if indices is None else indices[start:stop],
    )


def _is_by_sample(batch: object, samples: int) -> bool:
    """Whether every leaf is a tensor of `samples` rows. What belongs to the whole batch, a total or a longest length, is none."""
    if isinstance(batch, Tensor):
        return batch.dim() > 0 and batch.shape[0] == samples
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = list(batch)
    elif is_dataclass(batch) and not isinstance(batch, type):
        parts = [getattr(batch, field.name) for field in fields(batch)]
    else:
        return False
    return bool(parts) and all(_is_by_sample(part, samples) for part in parts)
