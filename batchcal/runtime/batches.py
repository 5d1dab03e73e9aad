"""Assign samples to micro-batches: groups of exactly the effective batch, every sample once per epoch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Final, NamedTuple

import torch
from torch.utils.data import IterableDataset, Sampler, default_collate

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.plan.division.split import split, split_by
from batchcal.runtime.row_slices import cuts_equal

PROOF_SAMPLES: Final = 8
"""Samples of a stream's first batch that test whether its batches may be cut. The test is cheap, even with large samples."""


class MicroBatch(NamedTuple):
    """A collated batch and its number of samples, which cannot be read from a batch in general."""

    batch: object
    samples: int
    indices: tuple[int, ...] | None = None
    """Indices of its samples in the dataset, in order. None: a stream has no indices."""
    cuttable: bool = False
    """True if cutting along its rows was proven equal to collating fewer samples; see `runtime.cutting`."""


class SampledIndices(NamedTuple):
    """The samples of one micro-batch, recorded when its indices are yielded."""

    indices: tuple[int, ...]
    group_samples: int
    """Samples of the complete group that it belongs to, which is one optimizer step."""
    ends_group: bool


Allowed = Callable[[Sequence[int]], int]
"""Indices of samples -> number of them, from the first on, that one micro-batch may contain now. At least 1."""


class GroupSampler(Sampler[list[int]], ABC):
    """The indices of each micro-batch of an epoch, in groups, one group per optimizer step.

    Each pass is the next epoch and begins when its first indices are requested. The indices of a micro-batch are also decided on
    request: with `limit` set, a planned micro-batch is cut into smaller ones by the limit at that moment. A group keeps its
    samples, however it is cut. Micro-batches are never joined: the plan is the upper bound.
    """

    def __init__(self, *, effective_batch: int, epoch: int = 0) -> None:
        self.effective_batch = effective_batch
        """Samples of a complete group."""
        self.epoch = epoch
        """Epoch of the next pass."""
        self.limit: Allowed | None = None
        self.rule: SizeRule | None = None
        """Sizes into which a planned micro-batch may be cut. None: all."""
        self._records: deque[SampledIndices] = deque()

    @abstractmethod
    def planned(self) -> Iterator[Sequence[Sequence[int]]]:
        """Return the groups of the pass that begins now, each as its planned micro-batches of indices.

        Called once per pass, before `epoch` is incremented. A subclass that begins in the middle of an epoch resets that here.
        """

    def __iter__(self) -> Iterator[list[int]]:
        groups = self.planned()
        self.epoch += 1
        self._records.clear()
        for group in groups:
            samples, last = sum(map(len, group)), len(group) - 1
            for index, planned in enumerate(group):
                rest = list(planned)
                while rest:
                    size = len(rest) if self.limit is None else min(len(rest), self.limit(rest))
                    if size < len(rest):
                        # Even parts, not full ones and a small rest.
                        size = self._cut(len(rest), size)
                    piece, rest = rest[:size], rest[size:]
                    self._records.append(SampledIndices(tuple(piece), samples, index == last and not rest))
                    yield piece

    def _cut(self, samples: int, largest: int) -> int:
        """Size of the first part into which `samples` are cut; all of them if the task does not accept such parts."""
        if self.rule is None:
            return split(samples, largest)[0]
        parts = () if self.rule.one_size else split_by(self.rule, samples, largest)
        return parts[0] if parts else samples

    def next_record(self) -> SampledIndices:
        """Return the record of the loader's next batch. Batches arrive in the order in which their indices were requested."""
        return self._records.popleft()


class MicroBatchSampler(GroupSampler):
    """Sampler of groups with the sizes of `micro_batches`. The samples of a group are the next ones of the epoch's order.

    The last group of an epoch has the remaining samples: in the sizes of `last_group` if their sum is equal, else as `divide`
    divides it. Without `divide`, it is split evenly into parts not larger than the plan's. With `drop_last`, it is left out. The
    order depends only on `seed` and the epoch's number: a run that resumes in epoch 7 has the order of epoch 7, from
    `first_sample` on, for any earlier sizes.
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
        schedule, order, start = self.schedule(), self._order(), self._first_sample
        self._first_sample = 0
        return self._groups(schedule, order, start)

    def schedule(self) -> tuple[tuple[int, ...], ...]:
        """Return the sizes of the micro-batches of every group of the next pass."""
        complete, rest = divmod(self.samples - self._first_sample, self.effective_batch)
        groups = [self.micro_batches] * complete
        if rest and not self._drop_last:
            planned = sum(self._last_group) == rest
            groups.append(self._last_group if planned else tuple(self._divide(rest)))
        return tuple(groups)

    def __len__(self) -> int:
        """Number of planned micro-batches of the next pass."""
        return sum(len(group) for group in self.schedule())

    @staticmethod
    def _groups(schedule: tuple[tuple[int, ...], ...], order: torch.Tensor, start: int) -> Iterator[Sequence[Sequence[int]]]:
        for sizes in schedule:
            group: list[list[int]] = []
            for size in sizes:
                group.append(order[start : start + size].tolist())
                start += size
            yield group

    def _order(self) -> torch.Tensor:
        if not self._shuffle:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=generator_of(self._seed, self.epoch))


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """Return a separate generator for one epoch: its numbers neither depend on the global generator nor advance it."""
    # Hashed, because torch's CPU generator takes 32 bits of a seed and neighbouring (seed, epoch) must not share an order.
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


class StreamBatches(IterableDataset[MicroBatch]):
    """Micro-batches of a dataset that can only be read in order: the plan's sizes one after another, then the remaining samples.

    A pass ends with the stream, or after `samples`, its length if it has one: an endless stream with a length has epochs, too.

    `first_sample`: number of samples that the next pass skips. `rule`: sizes that the task accepts. Samples at the end that do
    not make such a size are left out, because the length of a stream is unknown before it ends.
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
    """Collate function for items that are already batches."""
    return batch
