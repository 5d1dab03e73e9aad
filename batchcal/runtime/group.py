"""One optimizer step over a group of micro-batches: the function that both measuring and training run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.amp.grad_scaler import GradScaler

from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.gradients import GroupGradients
from batchcal.workload.step import batch_weight, clear_gradients, finish_group, forward_backward, move, update
from batchcal.workload.task import Task


@dataclass(frozen=True)
class Share:
    """What some of a group's micro-batches add to it."""

    weighted_loss: float = 0.0
    """Sum of weight x mean loss."""
    weight: float = 0.0
    """Samples, or what the task's `weight_of` counts."""
    samples: int = 0
    micro_batches: int = 0
    largest: int = 0
    """Samples of the largest micro-batch."""

    def __add__(self, other: Share) -> Share:
        return Share(
            self.weighted_loss + other.weighted_loss,
            self.weight + other.weight,
            self.samples + other.samples,
            self.micro_batches + other.micro_batches,
            max(self.largest, other.largest),
        )


@dataclass(frozen=True)
class GroupResult:
    """What one optimizer step saw."""

    loss: float
    """Mean over the group's weight."""
    weight: float
    """Total weight: samples, or what the task's `weight_of` counts."""
    samples: int
    micro_batches: int
    largest: int
    """Samples of the largest micro-batch that was run."""
    grad_norm: float | None
    """Euclidean norm of the gradient before clipping. None: it was not asked for."""


@runtime_checkable
class Weighing(Protocol):
    """A loss that keeps account of a group: it wants to know how each batch weighs, and which did not count."""

    def weigh(self, weight: float) -> None:
        """What the mean loss of the next batch weighs."""
        ...

    def take_back(self) -> None:
        """The pass over the last batch failed and will be run again."""
        ...


class Passes:
    """Forward and backward passes of one group, each of which may be undone."""

    def __init__(self, task: Task, device: torch.device, scaler: GradScaler | None) -> None:
        self._task, self._device, self._scaler = task, device, scaler
        self._gradients = GroupGradients(task)
        loss: object = task.loss
        self._weighing = loss if isinstance(loss, Weighing) else None
        self._begun = self._running = False
        self.finished = False
        """The optimizer's step is all that is left."""

    def run(self, micro_batch: MicroBatch) -> Share:
        """Forward and backward; the gradients of weight x mean join those of the group."""
        self._running = False
        if self._begun:
            self._gradients.begin()
        self._begun = self._running = True
        batch = move(micro_batch.batch, self._device)
        weight = batch_weight(self._task, batch, micro_batch.samples)
        if weight == 0:
            # A mean over nothing is no number, and 0 x that is none either.
            self._running = False
            return Share(0.0, 0.0, micro_batch.samples, 1, micro_batch.samples)
        if self._weighing is not None:
            self._weighing.weigh(weight)
        loss = forward_backward(self._task, batch, weight=weight, scaler=self._scaler)
        self._running = False
        return Share(weight * loss, weight, micro_batch.samples, 1, micro_batch.samples)

    def undo(self) -> None:
        """What a pass that did not end has added to the gradients goes. Those of the passes before stay."""
        if self._running:
            self._gradients.drop()
            if self._weighing is not None:
                self._weighing.take_back()
        self._running = False

    def finish(self) -> None:
        """All went well: the gradients are those of the group."""
        self._gradients.finish()
        self.finished = True


class Guard(Protocol):
    """Stands between a group and what may go wrong in it."""

    def run(self, passes: Passes, micro_batch: MicroBatch) -> Share:
        """Sees a micro-batch through `passes.run`, in parts if it must."""
        ...

    def before_update(self) -> None:
        """The gradients are whole, the optimizer's step comes next. May raise: nothing has changed yet."""
        ...


class Unguarded:
    """Everything as it comes."""

    def run(self, passes: Passes, micro_batch: MicroBatch) -> Share:
        return passes.run(micro_batch)

    def before_update(self) -> None:
        return None


def run_group(
    task: Task,
    micro_batches: Iterable[MicroBatch],
    *,
    device: torch.device,
    scaler: GradScaler | None,
    clear_first: bool = False,
    guard: Guard | None = None,
    max_norm: float | None = None,
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
        guard: runs each micro-batch; None: as it is.
        max_norm: clip the gradient to this norm (math.inf: only tell the norm).

    Raises:
        ValueError: no micro-batch at all.
    """
    if clear_first:
        clear_gradients(task)
    guard = guard or Unguarded()
    passes, total = Passes(task, device, scaler), Share()
    for micro_batch in micro_batches:
        total += guard.run(passes, micro_batch)
        # No name keeps a batch alive while the next one is loaded.
        del micro_batch
    if not total.micro_batches:
        raise ValueError("a group without micro-batches makes no step")
    passes.finish()
    guard.before_update()
    step = update if clear_first else finish_group
    norm = step(task, total.weight, scaler=scaler, max_norm=max_norm)
    return GroupResult(
        loss=total.weighted_loss / total.weight,
        weight=total.weight,
        samples=total.samples,
        micro_batches=total.micro_batches,
        largest=total.largest,
        grad_norm=norm,
    )
