"""The number of rows of a collated batch: fewer than its samples where the collate function drops some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Final

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

IMAGE_DIMS: Final = 3
"""A list of tensors of three dimensions may be images of different sizes, which share their number of channels."""


def rows_of(batch: object, samples: int) -> int:
    """Rows of a batch that was collated from `samples` samples; `samples` where the batch does not show how many there are.

    All parts of a batch agree on its rows: a tensor by its first dimension, a list of equal things also by its length. Of several
    numbers that all parts agree on, `samples` counts first. Then the first dimension of the tensors in a list counts: they
    are inputs and targets. Tensors of three dimensions may be images instead (five images of three channels): there the largest
    number counts. A number above `samples` (the nodes of graphs) is not a number of rows. Where the second dimension of every
    tensor is `samples`, the layout is (time, batch) and nothing was dropped. Nothing was dropped either where one part has
    `samples` rows and another one more (all tokens in a row, and an offset for each sample).
    """
    if batch is None:
        return 0
    shapes = [tensor.shape for tensor in _tensors(batch)]
    if shapes and all(samples in shape[1:2] for shape in shapes):
        return samples
    firsts = {shape[0] for shape in shapes}
    if samples in firsts and max(firsts) > samples:
        return samples
    agreed = {count for count in _counts(batch) or () if count <= samples}
    if len(agreed) > 1 and samples not in agreed:
        agreed = agreed & (_counts(batch, fields_first=True) or agreed) or agreed
    return max(agreed, default=samples)


def _counts(part: object, *, fields_first: bool = False) -> set[int] | None:
    """The numbers of rows that `part` may have. None: it shows nothing about rows.

    Args:
        fields_first: take tensors of a list that share their first dimension for fields of a batch, not for samples.
    """
    if isinstance(part, Tensor):
        return {part.shape[0]} if part.dim() else None
    if isinstance(part, PackedSequence):
        return {int(part.batch_sizes[0])}
    if isinstance(part, list | tuple):
        counts = _agreed([_counts(item, fields_first=fields_first) for item in part])
        # A named tuple has fields.
        listed = not hasattr(part, "_fields") and len({_kind(item) for item in part}) <= 1
        if fields_first and (counts == set() or _may_be_fields(part)):
            return counts
        return {len(part), *(counts or ())} if listed else counts
    if isinstance(part, Mapping):
        return _agreed([_counts(value, fields_first=fields_first) for value in part.values()])
    if is_dataclass(part) and not isinstance(part, type):
        return _agreed([_counts(getattr(part, field.name), fields_first=fields_first) for field in fields(part)])
    return None


def _agreed(counts: list[set[int] | None]) -> set[int] | None:
    numbers = [each for each in counts if each is not None]
    return set.intersection(*numbers) if numbers else None


def _may_be_fields(items: Sequence[object]) -> bool:
    """True if all items are tensors with the same first dimension, and are not images."""
    tensors = [item for item in items if isinstance(item, Tensor) and item.dim() not in (0, IMAGE_DIMS)]
    return len(tensors) == len(items) and len({tensor.shape[0] for tensor in tensors}) == 1


def _kind(item: object) -> object:
    """A property that the samples of a list share, and the fields of a pair mostly do not."""
    return (item.dtype, item.dim()) if isinstance(item, Tensor) else type(item)


def _tensors(part: object) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        if part.dim():
            yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _tensors(value)
    elif isinstance(part, list | tuple) and not isinstance(part, PackedSequence):
        for item in part:
            yield from _tensors(item)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _tensors(getattr(part, field.name))
