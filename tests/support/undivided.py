"""One optimizer step over the same samples, by each code of batchcal that divides a batch into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from batchcal.runtime.accumulate import accumulate
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.runtime.loader import make_loader
from batchcal.train.loop import train
from batchcal.train.options import TrainOptions
from batchcal.train.sizes.normalizer import EffectiveBatchSizeNormalizer
from batchcal.workload.step import batch_weight, finish_group, forward_backward, map_tensors
from batchcal.workload.task import Task
from tests.support.plans import a_plan
from tests.support.starving import Guarded

CPU: Final = torch.device("cpu")
Division = Callable[[Task, Sequence[int]], None]
"""Trains one step over the first samples of the task, divided into micro-batches of these sizes."""


def in_double(task: Task) -> Task:
    """The task in float64 with plain SGD, so that only the order of summation differs between divisions."""
    collate: Callable[..., object] = task.collate_fn or default_collate

    def doubled(samples: list[object]) -> object:
        return map_tensors(collate(samples), lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    model = task.model.double()
    return replace(task, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), collate_fn=doubled)


def parameters(task: Task) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


def micro_batches(task: Task, sizes: Sequence[int]) -> Iterator[MicroBatch]:
    collate: Callable[..., object] = task.collate_fn or default_collate
    start = 0
    for size in sizes:
        indices = tuple(range(start, start + size))
        yield MicroBatch(collate([task.train_data[index] for index in indices]), size, indices)
        start += size


def by_step(task: Task, sizes: Sequence[int]) -> None:
    total = 0.0
    for micro_batch in micro_batches(task, sizes):
        weight = batch_weight(task, micro_batch.batch, micro_batch.samples)
        forward_backward(task, micro_batch.batch, weight=weight, scaler=None)
        total += weight
    finish_group(task, total, scaler=None)


def by_group(task: Task, sizes: Sequence[int]) -> None:
    run_group(task, micro_batches(task, sizes), device=CPU, scaler=None)


def by_recovery(task: Task, sizes: Sequence[int]) -> None:
    """The undivided batch, which does not fit and is divided by the guardian."""
    run_group(task, micro_batches(task, [sum(sizes)]), device=CPU, scaler=None, guard=Guarded(task, most=max(sizes)))


def by_training(task: Task, sizes: Sequence[int]) -> None:
    first = replace(task, train_data=Subset(task.train_data, range(sum(sizes))), eval_data=None, size_of=None)
    train(first, a_plan(*sizes), TrainOptions(epochs=1))


def by_accumulate(task: Task, sizes: Sequence[int]) -> None:
    """A loop of the user's own. Its weights count samples."""
    plan = a_plan(*sizes)
    data: Dataset[object] = Subset(task.train_data, range(sum(sizes)))
    loader = make_loader(plan, data, collate_fn=task.collate_fn, shuffle=False)
    for group in accumulate(plan, loader):
        for batch, weight in group:
            (weight * task.loss(task.model, batch)).backward()
        task.optimizer.step()


def by_normalizer(task: Task, sizes: Sequence[int]) -> None:
    """The scale that `EffectiveBatchSizeNormalizer` gives. It counts samples."""
    total = sum(sizes)
    normalizer = EffectiveBatchSizeNormalizer(reference=total)
    for micro_batch in micro_batches(task, sizes):
        (normalizer.loss_scale(micro_batch.samples, total) * task.loss(task.model, micro_batch.batch)).backward()
    task.optimizer.step()


DIVISIONS: Final[dict[str, Division]] = {
    "step": by_step,
    "group": by_group,
    "recovery": by_recovery,
    "training": by_training,
    "accumulate": by_accumulate,
    "normalizer": by_normalizer,
}
COUNT_SAMPLES: Final = frozenset({"accumulate", "normalizer"})
"""These take no `weight_of`."""
