"""One optimizer step over a group of micro-batches: the function that both measuring and training run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch.amp.grad_scaler import GradScaler

from batchcal.core.errors import UsageError
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.gradients import GroupGradients
from batchcal.workload.model.optimizers import needs_closure
from batchcal.workload.model.parameters import trained_parameters
from batchcal.workload.step import batch_weight, clear_gradients, forward_backward, move, update
from batchcal.workload.task import Task

Skip = Literal["no-weight", "no-gradient", "overflow"]
"""Reason why a group made no optimizer step: all of its weights are 0; its loss does not depend on any parameter (nothing
in it is labelled); or a float16 gradient overflowed, and the scaler tries a lower scale."""


@dataclass(frozen=True)
class SampleShare:
    """The contribution of some micro-batches to their group."""

    weighted_loss: float = 0.0
    """Sum of weight x mean loss."""
    weight: float = 0.0
    """Samples, or what the task's `weight_of` counts."""
    samples: int = 0
    micro_batches: int = 0
    largest: int = 0
    """Samples of the largest micro-batch."""

    def __add__(self, other: SampleShare) -> SampleShare:
        return SampleShare(
            self.weighted_loss + other.weighted_loss,
            self.weight + other.weight,
            self.samples + other.samples,
            self.micro_batches + other.micro_batches,
            max(self.largest, other.largest),
        )


@dataclass(frozen=True)
class GroupResult:
    """The result of one optimizer step."""

    loss: float
    """Mean over the group's weight. 0 if the weight is 0."""
    weight: float
    """Total weight: samples, or what the task's `weight_of` counts."""
    samples: int
    micro_batches: int
    largest: int
    """Samples of the largest micro-batch that was run."""
    grad_norm: float | None
    """Euclidean norm of the gradient before clipping. None: it was not requested, or there is no gradient."""
    skipped: Skip | None = None
    """Reason why the optimizer did not step. None: it did."""


@runtime_checkable
class Weighing(Protocol):
    """A loss that keeps records of a group: it needs the weight of each batch, and the batches that did not count."""

    def weigh(self, weight: float) -> None:
        """Receive the weight of the mean loss of the next batch."""
        ...

    def take_back(self) -> None:
        """Forget the last batch: its pass failed and will be run again."""
        ...


class Passes:
    """Forward and backward passes of one group. Each pass can be undone.

    Weights are divided by the expected weight of the group, so that the gradients are as large as in a plain loop, which divides
    each loss by the number of micro-batches. A float16 gradient then does not overflow earlier.

    Args:
        samples: number of samples of the group. None: unknown; the first micro-batch then represents the group.
    """

    def __init__(self, task: Task, device: torch.device, scaler: GradScaler | None, samples: int | None = None) -> None:
        self._task, self._device, self._scaler, self._samples = task, device, scaler, samples
        self._gradients = GroupGradients(task)
        loss: object = task.loss
        self._weighing = loss if isinstance(loss, Weighing) else None
        self._started = self._running = self._weighed = False
        self._needs_closure = needs_closure(task.optimizer)
        self.again: Callable[[], float] | None = None
        """Computes the gradients of the group again, for an optimizer that needs a closure."""
        self.unit = 0.0
        """Divisor of the weights. 0: not set yet."""
        self.finished = False
        """True if only the optimizer's step is left."""

    def run(self, micro_batch: MicroBatch) -> SampleShare:
        """Run forward and backward, and add the gradients of weight x mean to those of the group."""
        self._running = self._weighed = False
        if self._started:
            self._gradients.begin()
        self._started = self._running = True
        batch = move(micro_batch.batch, self._device)
        weight = batch_weight(self._task, batch, micro_batch.samples)
        if weight == 0:
            # The mean of no values is NaN, and 0 x NaN is NaN, too.
            self._running = False
            return SampleShare(0.0, 0.0, micro_batch.samples, 1, micro_batch.samples)
        self._expect(weight, micro_batch.samples)
        if self._weighing is not None:
            self._weighing.weigh(weight)
            self._weighed = True
        loss = forward_backward(self._task, batch, weight=weight / self.unit, scaler=self._scaler)
        if self._needs_closure:
            self._keep(batch, loss)
        self._running = False
        return SampleShare(weight * loss, weight, micro_batch.samples, 1, micro_batch.samples)

    def _expect(self, weight: float, samples: int) -> None:
        """Set the unit. Increase it if a micro-batch has more weight than the expected weight of the group."""
        expected = weight if self._samples is None else max(weight, weight / max(samples, 1) * self._samples)
        if self.unit == 0:
            self.unit = expected
        elif weight > self.unit and self._scaler is not None:
            self._gradients.scale(self.unit / weight)
            self.unit = weight

    def _keep(self, batch: object, loss: float) -> None:
        """Keep the pass for the closure. The first call of the closure returns the result of this pass.

        Raises:
            UsageError: the group already has a micro-batch.
        """
        name = type(self._task.optimizer).__name__
        if self.again is not None:
            raise UsageError(
                f"{name} computes the loss again within its step, but the batch is divided into several micro-batches",
                known="all micro-batches would have to be kept and run again: this optimizer works only with one micro-batch",
                try_="--effective-batch N, with N not above the capacity",
            )
        if self._scaler is not None:
            raise UsageError(
                f"{name} does not work with float16 autocast",
                known="torch's GradScaler does not support a step with a closure",
                try_="autocast=torch.bfloat16, or autocast=None",
            )
        computed = [loss]
        parameters = trained_parameters(self._task)
        versions = [parameter._version for parameter in parameters]

        def is_current() -> bool:
            """True if the optimizer has neither changed the parameters nor cleared the gradients since they were computed."""
            moved = any(parameter._version != before for parameter, before in zip(parameters, versions, strict=True))
            return not moved and any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)

        def again() -> float:
            if computed and is_current():
                return computed.pop()
            computed.clear()
            clear_gradients(self._task)
            return forward_backward(self._task, batch, weight=1.0, scaler=None)

        self.again = again

    def undo(self) -> None:
        """Drop the gradients of a pass that did not end. Those of the earlier passes stay."""
        if self._running:
            self._gradients.drop()
            if self._weighing is not None and self._weighed:
                self._weighing.take_back()
        self._running = False

    def finish(self) -> None:
        """End a successful group: the gradients are now those of the group."""
        self._gradients.finish()
        self.finished = True

    def has_gradient(self) -> bool:
        """True if a loss of the group depended on a parameter."""
        return self._gradients.any()


class Guard(Protocol):
    """Protection of a group against failures."""

    def run(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare:
        """Run a micro-batch by `passes.run`, in parts if necessary."""
        ...

    def before_update(self) -> None:
        """Prepare for the optimizer's step. The gradients are complete. May raise: nothing has changed yet."""
        ...


class Unguarded:
    """A guard that runs every micro-batch as it is."""

    def run(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare:
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
    samples: int | None = None,
) -> GroupResult:
    """Run forward and backward over every micro-batch, then one step of the optimizer.

    The gradients are those of the undivided batch: each micro-batch adds weight x mean, and their sum is divided by the total
    weight before the step. Weights need not be known in advance, and `micro_batches` is consumed one by one: no micro-batch is
    kept while the next is made.

    A micro-batch with weight 0 or with a constant loss adds zero. If no micro-batch adds a gradient, the optimizer does not step,
    and the result has the reason.

    Args:
        task: prepared for `device`, with clear gradients, as every group leaves them.
        scaler: for float16 autocast, else None.
        clear_first: clear the gradients of the previous step now, and keep those of this step. Loops that call `zero_grad` before
            the forward pass do so: their gradients are in memory while the next batch is made.
        guard: runs each micro-batch. None: each runs as it is.
        max_norm: clip the gradient to this norm (math.inf: only report the norm).
        samples: number of samples of the group, if it is known and `micro_batches` is not a sequence. It affects only the
            magnitude of float16 gradients before they are divided.

    Raises:
        ValueError: there is no micro-batch.
        UsageError: several micro-batches, or float16, with an optimizer that needs a closure.
    """
    if clear_first:
        clear_gradients(task)
    if samples is None and isinstance(micro_batches, Sequence):
        samples = sum(micro_batch.samples for micro_batch in micro_batches)
    guard = guard or Unguarded()
    passes, total = Passes(task, device, scaler, samples), SampleShare()
    for micro_batch in micro_batches:
        total += guard.run(passes, micro_batch)
        # No name keeps a batch alive while the next one is loaded.
        del micro_batch
    if not total.micro_batches:
        raise ValueError("a group needs at least one micro-batch")
    passes.finish()
    norm, skipped = None, _without_step(passes, total)
    if skipped is None:
        guard.before_update()
        updated = update(task, total.weight / passes.unit, scaler=scaler, max_norm=max_norm, again=passes.again)
        norm, skipped = updated.grad_norm, "overflow" if updated.overflowed else None
    if not clear_first:
        clear_gradients(task)
    return GroupResult(
        loss=total.weighted_loss / total.weight if total.weight else 0.0,
        weight=total.weight,
        samples=total.samples,
        micro_batches=total.micro_batches,
        largest=total.largest,
        grad_norm=norm,
        skipped=skipped,
    )


def _without_step(passes: Passes, total: SampleShare) -> Skip | None:
    """Reason why the group makes no step. None: it makes a step."""
    if total.weight == 0:
        return "no-weight"
    return None if passes.has_gradient() else "no-gradient"
