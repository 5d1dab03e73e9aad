"""One optimizer step over a group of micro-batches: the function that both measuring and training run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from batchcal.runtime.batches import MicroBatch
from batchcal.workload.step import batch_weight, clear_gradients, finish_group, forward_backward, move, update
from batchcal.workload.task import Task


@dataclass(frozen=True)
class GroupResult:
    """What one optimizer step saw."""

    loss: float
    """Mean over the group's weight."""
    weight: float
    """Total weight: samples, or what the task's `weight_of` counts."""
    samples: int
    micro_batches: int


def run_group(
    task: Task,
    micro_batches: Iterable[MicroBatch],
    *,
    device: torch.device,
    scaler: GradScaler | None,
    clear_first: bool = False,
) -> GroupResult:
    """Forward and backward over every micro-batch, then one step of the optimizer.

    The gradients are those of the undivided batch: each micro-batch adds weight x mean, and their sum is divided by the total
    weight before the step. So weights need not be known beforehand, and `micro_batches` is consumed one by one: no micro-batch is
    kept while the next is made.

    Args:
        task: prepared for `device`; gradients clear, as every group leaves them.
        scaler: for float16 autocast, else None.
        clear_first: clear the gradients of the step before now, and leave this one's: as loops do that call `zero_grad` before
            the forward pass, whose gradients are there while the next batch is made.

    Raises:
        ValueError: no micro-batch at all.
    """
    if clear_first:
        clear_gradients(task)
    weight = weighted_loss = 0.0
    samples = count = 0
    for micro_batch in micro_batches:
        size = micro_batch.samples
        batch = move(micro_batch.batch, device)
        # No name keeps a batch, nor its copy on the host, alive while the next one is made.
        del micro_batch
        share = batch_weight(task, batch, size)
        weighted_loss += share * forward_backward(task, batch, weight=share, scaler=scaler)
        del batch
        weight += share
        samples += size
        count += 1
    if not count:
        raise ValueError("a group without micro-batches makes no step")
    if clear_first:
        update(task, weight, scaler=scaler)
    else:
        finish_group(task, weight, scaler=scaler)
    return GroupResult(loss=weighted_loss / weight, weight=weight, samples=samples, micro_batches=count)
