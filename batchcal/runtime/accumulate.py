"""Micro-batches in groups, one group per optimizer step, and the exact weight of each.

A loop of one's own accumulates like this, and its gradients are those of the undivided batch:

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
from batchcal.runtime.batches import MicroBatch, MicroBatchSampler, StreamBatches


@dataclass(frozen=True)
class Group:
    """The micro-batches of one optimizer step, loaded as they are asked for."""

    sizes: tuple[int, ...] | None
    """Samples in each. None: a stream, of which that is known when they have come."""
    micro_batches: Iterator[MicroBatch]


def accumulate(plan: Plan, loader: DataLoader[object]) -> Iterator[Iterator[tuple[object, float]]]:
    """One pass over `loader` in groups; in each group, every micro-batch with its weight.

    The weights of a group sum to 1: the samples of the micro-batch over the samples of its group, which is exact for uneven and
    for the last, smaller groups too. The loss must be the mean over the samples of the batch it was given.

    Micro-batches are loaded one by one: the sizes are known before. Only those of a stream (an IterableDataset) are gathered
    until their group is complete. What a caller leaves of a group is skipped when it asks for the next.

    Args:
        loader: from `batchcal.make_loader(plan, ...)`.

    Raises:
        UsageError: the loader is not from `make_loader`, or was made with another plan.
    """
    if planned_sizes(loader) != plan.micro_batches:
        raise UsageError("this loader was made with another plan", try_="loader = batchcal.make_loader(plan, dataset)")
    return _weighed(loader)


def groups(loader: DataLoader[object]) -> Iterator[Group]:
    """One pass over a loader of `make_loader`, a group at a time, nothing gathered: no batch is alive but the caller's own and
    those that the loader prefetches.

    Raises:
        UsageError: the loader is not from `make_loader`.
    """
    if isinstance(loader.batch_sampler, MicroBatchSampler):
        return _sized_groups(loader, loader.batch_sampler)
    return _stream_groups(loader, len(planned_sizes(loader)))


def planned_sizes(loader: DataLoader[object]) -> tuple[int, ...]:
    """The sizes of a whole group of this loader.

    Raises:
        UsageError: the loader is not from `make_loader`.
    """
    for source in (loader.batch_sampler, loader.dataset):
        if isinstance(source, MicroBatchSampler | StreamBatches):
            return source.micro_batches
    raise UsageError(
        "accumulate needs a loader that was made for the plan",
        known="the weights follow from the sizes of its batches, and those of another loader are not known",
        try_="loader = batchcal.make_loader(plan, dataset)",
    )


def _weighed(loader: DataLoader[object]) -> Iterator[Iterator[tuple[object, float]]]:
    for group in groups(loader):
        if group.sizes is None:
            gathered = list(group.micro_batches)
            total = sum(micro_batch.samples for micro_batch in gathered)
            yield _shares(iter(gathered), total)
        else:
            yield _shares(group.micro_batches, sum(group.sizes))


def _shares(micro_batches: Iterator[MicroBatch], total: int) -> Iterator[tuple[object, float]]:
    # map, because a generator's own name would keep a batch alive while the next one is loaded.
    return map(partial(_share, total=total), micro_batches)


def _share(micro_batch: MicroBatch, total: int) -> tuple[object, float]:
    return micro_batch.batch, micro_batch.samples / total


def _sized_groups(loader: DataLoader[object], sampler: MicroBatchSampler) -> Iterator[Group]:
    schedule = sampler.schedule()
    batches = iter(loader)
    for sizes in schedule:
        group = _sized(batches, sizes)
        yield Group(sizes, group)
        _finish(group)
    # To its end: only then do workers leave, and a pass of which nothing was left must be begun to make way for the next.
    next(batches, None)


def _sized(batches: Iterator[object], sizes: tuple[int, ...]) -> Iterator[MicroBatch]:
    for size in sizes:
        yield MicroBatch(next(batches), size)


def _stream_groups(loader: DataLoader[object], size: int) -> Iterator[Group]:
    batches = iter(loader)
    # The first of a group is loaded to know that there is one; a list to take it from, so that nothing here holds on to it.
    for first in batches:
        held = [_counted(first)]
        del first
        group = _streamed(held, batches, size)
        yield Group(None, group)
        _finish(group)


def _streamed(held: list[MicroBatch], batches: Iterator[object], size: int) -> Iterator[MicroBatch]:
    yield held.pop()
    for _ in range(size - 1):
        held.extend(map(_counted, islice(batches, 1)))
        if not held:
            return
        yield held.pop()


def _counted(item: object) -> MicroBatch:
    if not isinstance(item, MicroBatch):  # pragma: no cover - our own collate makes nothing else
        raise TypeError(f"{type(item).__name__} instead of MicroBatch")
    return item


def _finish(group: Iterator[MicroBatch]) -> None:
    for _ in group:
        pass
