"""Cut a collated batch along its rows, and check whether this equals collating fewer samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from batchcal.core.numpy_state import numpy_state, restore_numpy
from batchcal.workload.step import map_tensors


def cut(batch: object, start: int, stop: int) -> object:
    """Return the rows from `start` to `stop` (excluded) of every tensor, as views."""
    return map_tensors(batch, lambda tensor: tensor[start:stop])


def is_by_sample(batch: object, samples: int) -> bool:
    """True if every leaf is a tensor of `samples` rows. A total or a longest length belongs to the complete batch."""
    if isinstance(batch, Tensor):
        return batch.dim() > 0 and batch.shape[0] == samples
    parts = _parts(batch)
    return bool(parts) and all(is_by_sample(part, samples) for part in parts or ())


def cuts_equal(samples: Sequence[object], collate: Callable[..., object]) -> bool:
    """True if cutting a batch of `samples` equals collating fewer of them, apart from more padding. Tested with both halves.

    The random state is restored afterwards. A collate function that draws random numbers is not proven equal.
    """
    count = len(samples)
    if count < 2:
        return False
    middle = count - count // 2
    python, numpy = random.getstate(), numpy_state()
    try:
        with torch.random.fork_rng(devices=[]):
            batch = collate(list(samples))
            return is_by_sample(batch, count) and all(
                _same(collate(list(samples[start:stop])), cut(batch, start, stop))
                for start, stop in ((0, middle), (middle, count))
            )
    except Exception:  # noqa: BLE001 - a collate function that fails on fewer samples proves nothing
        return False
    finally:
        random.setstate(python)
        restore_numpy(numpy)


def _same(collated: object, part: object) -> bool:
    """True if `part` of a larger batch equals the batch `collated` from its samples alone."""
    if isinstance(collated, Tensor) and isinstance(part, Tensor):
        return _same_but_for_padding(collated, part)
    left, right = _parts(collated), _parts(part)
    if left is None or right is None or type(collated) is not type(part) or len(left) != len(right):
        return False
    return all(_same(first, second) for first, second in zip(left, right, strict=True))


def _same_but_for_padding(collated: Tensor, part: Tensor) -> bool:
    """Compare without padding. If the longest sample is in the other half, `part` is longer, by one repeated value."""
    if collated.dtype != part.dtype or collated.dim() != part.dim() or collated.shape[:1] != part.shape[:1]:
        return False
    if any(own > other for own, other in zip(collated.shape, part.shape, strict=True)):
        return False
    block = tuple(slice(0, size) for size in collated.shape)
    if not torch.allclose(collated, part[block], rtol=0, atol=0, equal_nan=True):
        return False
    outside = torch.ones(part.shape, dtype=torch.bool)
    outside[block] = False
    padding = part[outside]
    return bool((padding == padding[:1]).all())


def _parts(batch: object) -> list[object] | None:
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, list | tuple):
        return list(batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in fields(batch)]
    return None
