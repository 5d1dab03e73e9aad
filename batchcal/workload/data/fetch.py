"""Reading and collating the samples of a batch, as a DataLoader does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Final

from torch.utils.data import Dataset, Subset, default_collate

from batchcal.guard.children.report import READING, STACKING

MOST_NAMED: Final = 8
"""Indices of a batch that is read together, in a message."""


def fetch(dataset: Dataset[object], indices: Sequence[int], collate: Callable[..., object] | None) -> object:
    """The batch of the samples at `indices`: read with `__getitems__` where the dataset has it, as torch's own fetcher does."""
    return collated(samples_at(dataset, indices), collate or default_collate, dataset, indices)


def collated(samples: object, collate: Callable[..., object], dataset: object, indices: Sequence[int]) -> object:
    """The batch that `collate` makes of `samples`, which are those at `indices`. An error of torch's own is noted as such."""
    try:
        return collate(samples)
    except Exception as error:
        if collate is default_collate:
            listed = samples if isinstance(samples, list) else []
            absent = [index for index, sample in zip(indices, listed, strict=False) if sample is None]
            error.add_note(f"{STACKING} of {type(dataset).__name__}" + (f", where sample {absent[0]} is None" if absent else ""))
        raise


def samples_at(dataset: Dataset[object], indices: Sequence[int]) -> object:
    """The argument of the collate function: the list of samples, or the result of `__getitems__`. An error names the sample."""
    together: object = getattr(dataset, "__getitems__", None)
    if not callable(together):
        return [_sample(dataset, index) for index in indices]
    if type(dataset) is Subset and not reads_together(dataset):
        return [_sample(dataset, index) for index in indices]
    try:
        return together(list(indices))
    except Exception as error:
        _name(error, dataset, indices)
        raise


def reads_together(dataset: object) -> bool:
    """True if the dataset reads the samples of a batch together. It may return anything for them, such as a stacked batch.

    Every torch `Subset` has `__getitems__`, and returns a list if its dataset does not have it.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return callable(getattr(dataset, "__getitems__", None))


def sample_at(dataset: Dataset[object], index: int) -> object:
    """One sample. A dataset that has only `__getitems__`, or a `Subset` of it, is read with that, as a batch of one."""
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    if type(inner).__getitem__ is not Dataset.__getitem__:
        return _sample(dataset, index)
    samples = samples_at(dataset, [index])
    return samples[0] if isinstance(samples, list) and len(samples) == 1 else samples


def _sample(dataset: Dataset[object], index: int) -> object:
    try:
        return dataset[index]
    except Exception as error:
        _name(error, dataset, [index])
        raise


def _name(error: Exception, dataset: object, indices: Sequence[int]) -> None:
    """Note in `error` which sample was read: for one of a subset that of the dataset below it, which the user can look up."""
    places = list(indices)
    while type(dataset) is Subset:
        places = [dataset.indices[place] for place in places]
        dataset = dataset.dataset
    shown = ", ".join(str(place) for place in places[:MOST_NAMED]) + (", ..." if len(places) > MOST_NAMED else "")
    many = "s" if len(places) > 1 else ""
    length = f", whose length is {len(dataset)}" if isinstance(error, IndexError) and isinstance(dataset, Sized) else ""
    error.add_note(f"{READING}{many} {shown} of {type(dataset).__name__}{length}")


class Collate:
    """The user's collate function. A batch without a sample is None, and weighs nothing in its group.

    Datasets return None for a sample that cannot be read, and the collate function leaves it out. Where all samples of a batch
    are None, nothing is left to stack: most collate functions fail on that.
    """

    def __init__(self, collate: Callable[..., object]) -> None:
        self.collate = collate

    def __call__(self, samples: object) -> object:
        try:
            return self.collate(samples)
        except Exception:
            if isinstance(samples, list) and samples and all(sample is None for sample in samples):
                return None
            raise


def tolerant(collate: Callable[..., object] | None) -> Callable[..., object] | None:
    """`collate` for a loader: a batch of which it leaves nothing becomes None. torch's own drops no sample and stays as it is."""
    return collate if collate is None or isinstance(collate, Collate) else Collate(collate)
