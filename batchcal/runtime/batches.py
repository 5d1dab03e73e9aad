"""Which samples make which micro-batch: exactly the plan's sizes per group, every sample once per epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch.utils.data import IterableDataset, Sampler

from batchcal.plan.split import split


class MicroBatch(NamedTuple):
    """A collated batch and how many samples are in it, which a batch cannot be asked for in general."""

    batch: object
    samples: int


class MicroBatchSampler(Sampler[list[int]]):
    """The indices of each micro-batch of an epoch.

    A group, the samples of one optimizer step, has the sizes of `micro_batches`. The last group of an epoch is what is left,
    split evenly into parts no larger than the plan's; with `drop_last` it is left out.

    Each pass is the next epoch with an order of its own, told by `seed` and the epoch's number alone: a run that resumes in epoch
    7 sees epoch 7's order. A pass begins when its first indices are asked for.
    """

    def __init__(
        self,
        samples: int,
        micro_batches: Sequence[int],
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        epoch: int = 0,
        first_group: int = 0,
    ) -> None:
        self.samples = samples
        self.micro_batches = tuple(micro_batches)
        self.epoch = epoch
        """The next pass's."""
        self._shuffle = shuffle
        self._seed = seed
        self._drop_last = drop_last
        self._first_group = first_group

    def schedule(self) -> tuple[tuple[int, ...], ...]:
        """The sizes of the micro-batches of every group of the next pass."""
        whole, rest = divmod(self.samples, sum(self.micro_batches))
        groups = [self.micro_batches] * whole
        if rest and not self._drop_last:
            groups.append(split(rest, max(self.micro_batches)))
        return tuple(groups[self._first_group :])

    def __iter__(self) -> Iterator[list[int]]:
        sizes = [size for group in self.schedule() for size in group]
        order, at = self._order(), self._first_group * sum(self.micro_batches)
        self.epoch += 1
        self._first_group = 0
        for size in sizes:
            yield order[at : at + size].tolist()
            at += size

    def __len__(self) -> int:
        """Micro-batches of the next pass."""
        return sum(len(group) for group in self.schedule())

    def _order(self) -> torch.Tensor:
        if not self._shuffle:
            return torch.arange(self.samples)
        # A generator of its own, so that the order neither depends on nor moves the global one. Hashed since torch's CPU
        # generator takes 32 bits of a seed and neighbouring (seed, epoch) must not share an order.
        digest = hashlib.sha256(f"{self._seed}/{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return torch.randperm(self.samples, generator=generator)


class StreamBatches(IterableDataset[MicroBatch]):
    """Micro-batches of a dataset that can only be read in order: the plan's sizes in turn, then what is left."""

    def __init__(
        self, dataset: IterableDataset[object], micro_batches: Sequence[int], collate: Callable[[list[object]], object]
    ) -> None:
        self.dataset = dataset
        self.micro_batches = tuple(micro_batches)
        self.collate = collate

    def __iter__(self) -> Iterator[MicroBatch]:
        samples = iter(self.dataset)
        for size in cycle(self.micro_batches):
            batch = list(islice(samples, size))
            if not batch:
                return
            count = len(batch)
            yield MicroBatch(self.collate(batch), count)
            if count < size:
                return


def unchanged(batch: object) -> object:
    """The collate function of batches that are batches already."""
    return batch
