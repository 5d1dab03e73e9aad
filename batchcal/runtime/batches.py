"""Which samples make which micro-batch: groups of exactly the effective batch, every sample once per epoch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Final, NamedTuple

import torch
from torch.utils.data import IterableDataset, Sampler, default_collate

from batchcal.calibration.size_rule import SizeRule
from batchcal.plan.split import split, split_by
from batchcal.runtime.cutting import cuts_equal

PROOF_SAMPLES: Final = 8
"""Of a stream's first batch: whether its batches may be cut is tried with so many, which costs little even of large samples."""


class MicroBatch(NamedTuple):
    """A collated batch and how many samples are in it, which a batch cannot be asked for in general."""

    batch: object
    samples: int
    indices: tuple[int, ...] | None = None
    """Of its samples in the dataset, in order. None: a stream has none."""
    cuttable: bool = False
    """Whether cutting along its rows was proven equal to collating fewer samples; see `runtime.cutting`."""


class Drawn(NamedTuple):
    """The samples of one micro-batch, noted as its indices are handed out."""

    indices: tuple[int, ...]
    group_samples: int
    """In the whole group, the samples of one optimizer step, that it belongs to."""
    ends_group: bool


Allowed = Callable[[Sequence[int]], int]
"""Indices of samples -> how many of them, from the first on, one micro-batch may hold now. At least 1."""


class GroupSampler(Sampler[list[int]], ABC):
    """The indices of each micro-batch of an epoch, in groups, one group per optimizer step.

    Each pass is the next epoch and begins when its first indices are asked for. The indices of a micro-batch are settled as late:
    with `limit` set, a planned micro-batch is cut into smaller ones by what is allowed at that moment. A group keeps its samples
    however it is cut. Nothing is ever joined: the plan is the upper bound.
    """

    def __init__(self, *, effective_batch: int, epoch: int = 0) -> None:
        self.effective_batch = effective_batch
        """Samples of a whole group."""
        self.epoch = epoch
        """The next pass's."""
        self.limit: Allowed | None = None
        self.rule: SizeRule | None = None
        """Which sizes a planned micro-batch may be cut into. None: all."""
        self._drawn: deque[Drawn] = deque()

    @abstractmethod
    def planned(self) -> Iterator[Sequence[Sequence[int]]]:
        """The groups of the pass that begins now, each as its planned micro-batches of indices.

        Called once per pass, before `epoch` is counted up. A subclass that was told to begin in the middle forgets that here.
        """

    def __iter__(self) -> Iterator[list[int]]:
        groups = self.planned()
        self.epoch += 1
        self._drawn.clear()
        for group in groups:
            samples, last = sum(map(len, group)), len(group) - 1
            for place, planned in enumerate(group):
                rest = list(planned)
                while rest:
                    size = len(rest) if self.limit is None else min(len(rest), self.limit(rest))
                    if size < len(rest):
                        # Even parts rather than full ones and a small rest.
                        size = self._cut(len(rest), size)
                    piece, rest = rest[:size], rest[size:]
                    self._drawn.append(Drawn(tuple(piece), samples, place == last and not rest))
                    yield piece

    def _cut(self, samples: int, most: int) -> int:
        """The first of the parts into which `samples` are cut; all of them where the task does not take such parts."""
        if self.rule is None:
            return split(samples, most)[0]
        parts = () if self.rule.one_size else split_by(self.rule, samples, most)
        return parts[0] if parts else samples

    def taken(self) -> Drawn:
        """What is known of the next batch that the loader delivers: batches come in the order in which indices were asked for."""
        return self._drawn.popleft()


class MicroBatchSampler(GroupSampler):
    """A group has the sizes of `micro_batches`; its samples are the next ones of the epoch's order.

    The last group of an epoch is what is left: in the sizes of `last_group` where their sum is that, else as `divide` divides it;
    without that, split evenly into parts no larger than the plan's. With `drop_last` it is left out. The order follows from
    `seed` and the epoch's number alone: a run that resumes in epoch 7 has epoch 7's order, from `first_sample` on, whatever the
    sizes were before.
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
        first_sample: int = 0,
        last_group: Sequence[int] = (),
        divide: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        super().__init__(effective_batch=sum(micro_batches), epoch=epoch)
        self._last_group = tuple(last_group)
        self._divide = divide or (lambda rest: split(rest, max(micro_batches)))
        self.samples = samples
        self.micro_batches = tuple(micro_batches)
        self._shuffle = shuffle
        self._seed = seed
        self._drop_last = drop_last
        self._first_sample = first_sample

    def planned(self) -> Iterator[Sequence[Sequence[int]]]:
        schedule, order, at = self.schedule(), self._order(), self._first_sample
        self._first_sample = 0
        return self._groups(schedule, order, at)

    def schedule(self) -> tuple[tuple[int, ...], ...]:
        """The sizes of the micro-batches of every group of the next pass."""
        whole, rest = divmod(self.samples - self._first_sample, self.effective_batch)
        groups = [self.micro_batches] * whole
        if rest and not self._drop_last:
            planned = sum(self._last_group) == rest
            groups.append(self._last_group if planned else tuple(self._divide(rest)))
        return tuple(groups)

    def __len__(self) -> int:
        """Micro-batches of the next pass, as planned."""
        return sum(len(group) for group in self.schedule())

    @staticmethod
    def _groups(schedule: tuple[tuple[int, ...], ...], order: torch.Tensor, at: int) -> Iterator[Sequence[Sequence[int]]]:
        for sizes in schedule:
            group: list[list[int]] = []
            for size in sizes:
                group.append(order[at : at + size].tolist())
                at += size
            yield group

    def _order(self) -> torch.Tensor:
        if not self._shuffle:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=generator_of(self._seed, self.epoch))


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """A generator of its own for one epoch, so that what is drawn neither depends on nor moves the global one."""
    # Hashed, since torch's CPU generator takes 32 bits of a seed and neighbouring (seed, epoch) must not share an order.
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


class StreamBatches(IterableDataset[MicroBatch]):
    """Micro-batches of a dataset that can only be read in order: the plan's sizes in turn, then what is left.

    A pass ends where the stream ends, or after `samples`, its length where it has one: an endless stream with a length has epochs
    too.

    `first_sample`: how many samples the next pass reads past. `rule`: which sizes the task takes; samples at the end that make no
    such size are left out, since the length of a stream is unknown before it ends.
    """

    def __init__(
        self,
        dataset: IterableDataset[object],
        micro_batches: Sequence[int],
        collate: Callable[[list[object]], object],
        *,
        first_sample: int = 0,
        samples: int | None = None,
        rule: SizeRule | None = None,
    ) -> None:
        self.dataset = dataset
        self.rule = rule
        self.micro_batches = tuple(micro_batches)
        self.collate = collate
        self.first_sample = first_sample
        self.samples = samples

    def __iter__(self) -> Iterator[MicroBatch]:
        samples = islice(iter(self.dataset), self.first_sample, self.samples)
        self.first_sample = 0
        cuttable: bool | None = None
        for size in cycle(self.micro_batches):
            batch = list(islice(samples, size))
            if len(batch) < size and self.rule is not None:
                del batch[0 if self.rule.one_size else self.rule.at_most(len(batch)) :]
            if not batch:
                return
            count = len(batch)
            if cuttable is None and count > 1 and self.collate is not default_collate:
                cuttable = cuts_equal(batch[:PROOF_SAMPLES], self.collate)
            yield MicroBatch(self.collate(batch), count, cuttable=bool(cuttable))
            if count < size:
                return


def unchanged(batch: object) -> object:
    """The collate function of batches that are batches already."""
    return batch
