"""Micro-batches in groups, one group per optimizer step, and the exact weight of each.

A user's own loop accumulates like this. Its gradients are those of the undivided batch:

    loader = batchcal.make_loader(plan, dataset)
    for group in batchcal.accumulate(plan, loader):
        for batch, weight in group:
            (weight * loss_of(model, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from torch.utils.data import DataLoader

from batchcal.core.errors import UsageError
from batchcal.plan.plan import Plan
from batchcal.runtime.batches import GroupSampler, MicroBatch, MicroBatchSampler, StreamBatches
from batchcal.runtime.worker_deaths import raise_postponed


@dataclass(frozen=True)
class Group:
    """The micro-batches of one optimizer step, loaded on request."""

    samples: int | None
    """Samples of all micro-batches. None: a stream, whose number is unknown until all are read."""
    micro_batches: Iterator[MicroBatch]


def accumulate(plan: Plan, loader: DataLoader[object]) -> Iterator[Iterator[tuple[object, float]]]:
    """Iterate once over `loader` in groups. Each group yields every micro-batch with its weight.

    The weights of a group sum to 1: the samples of the micro-batch divided by the samples of its group. This is exact for uneven
    groups and for the last, smaller one, too. The loss must be the mean over the samples of its batch.

    Micro-batches are loaded one by one: the number of samples of a group is known in advance. Only those of a stream (an
    IterableDataset) are collected until their group is complete. If a caller leaves a group early, its rest is skipped.

    Args:
        loader: from `batchcal.make_loader(plan, ...)`.

    Raises:
        UsageError: the loader is not from `make_loader`, or was made with another plan.
    """
    if not _made_for(plan, loader):
        raise UsageError("this loader was made with another plan", try_="loader = batchcal.make_loader(plan, dataset)")
    return _weighed(loader)


def groups(loader: DataLoader[object]) -> Iterator[Group]:
    """Iterate once over a loader of `make_loader`, group by group, without collecting batches: only the caller's own batch and
    those that the loader prefetches are alive.

    Raises:
        UsageError: the loader is not from `make_loader`.
    """
    if isinstance(loader.batch_sampler, GroupSampler):
        return _sampled_groups(loader, loader.batch_sampler)
    return _stream_groups(loader, _stream(loader))


def _made_for(plan: Plan, loader: DataLoader[object]) -> bool:
    sampler = loader.batch_sampler
    if isinstance(sampler, MicroBatchSampler):
        return sampler.micro_batches == plan.micro_batches
    if isinstance(sampler, GroupSampler):
        return sampler.effective_batch == plan.effective_batch
    return _stream(loader).micro_batches == plan.micro_batches


def _stream(loader: DataLoader[object]) -> StreamBatches:
    if isinstance(loader.dataset, StreamBatches):
        return loader.dataset
    raise UsageError(
        "accumulate needs a loader that was made for the plan",
        known="the weights depend on the sizes of the batches, which are unknown for another loader",
        try_="loader = batchcal.make_loader(plan, dataset)",
    )


def _weighed(loader: DataLoader[object]) -> Iterator[Iterator[tuple[object, float]]]:
    for group in groups(loader):
        if group.samples is None:
            gathered = list(group.micro_batches)
            total = sum(micro_batch.samples for micro_batch in gathered)
            yield _shares(iter(gathered), total)
        else:
            yield _shares(group.micro_batches, group.samples)


def _shares(micro_batches: Iterator[MicroBatch], total: int) -> Iterator[tuple[object, float]]:
    # map, because a generator's own variable would keep a batch alive while the next one is loaded.
    return map(partial(_share, total=total), micro_batches)


def _share(micro_batch: MicroBatch, total: int) -> tuple[object, float]:
    return micro_batch.batch, micro_batch.samples / total


def _sampled_groups(loader: DataLoader[object], sampler: GroupSampler) -> Iterator[Group]:
    batches = iter(loader)
    # The first batch is loaded to check that a group exists. It is passed in a list, so that no variable here keeps it alive.
    for first in batches:
        record = sampler.next_record()
        pending = [(MicroBatch(first, len(record.indices), record.indices), record.ends_group)]
        del first
        group = _sampled(pending, batches, sampler)
        yield Group(record.group_samples, group)
        _finish(group)
        raise_postponed()


def _sampled(pending: list[tuple[MicroBatch, bool]], batches: Iterator[object], sampler: GroupSampler) -> Iterator[MicroBatch]:
    ends = pending[0][1]
    yield pending.pop()[0]
    while not ends:
        raise_postponed()
        pending.extend(map(partial(_next_micro_batch, sampler), islice(batches, 1)))
        ends = pending[0][1]
        yield pending.pop()[0]


def _next_micro_batch(sampler: GroupSampler, batch: object) -> tuple[MicroBatch, bool]:
    record = sampler.next_record()
    return MicroBatch(batch, len(record.indices), record.indices), record.ends_group


def _stream_groups(loader: DataLoader[object], stream: StreamBatches) -> Iterator[Group]:
    batches = iter(loader)
    size = len(stream.micro_batches)
    for first in batches:
        # Workers have their own copy, which has already reset its own start in the middle.
        stream.first_sample = 0
        pending = [_counted(first)]
        del first
        group = _streamed(pending, batches, size)
        yield Group(None, group)
        _finish(group)
        raise_postponed()


def _streamed(pending: list[MicroBatch], batches: Iterator[object], size: int) -> Iterator[MicroBatch]:
    yield pending.pop()
    for _ in range(size - 1):
        raise_postponed()
        pending.extend(map(_counted, islice(batches, 1)))
        if not pending:
            return
        yield pending.pop()


def _counted(item: object) -> MicroBatch:
    if not isinstance(item, MicroBatch):  # pragma: no cover - our own collate makes nothing else
        raise TypeError(f"the loader yielded {type(item).__name__} instead of MicroBatch")
    return item


def _finish(group: Iterator[MicroBatch]) -> None:
    for _ in group:
        pass
