"""Arguments, answer and function of the child that runs a complete plan. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.calibration.records.speed import Share
from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.child_memory import Bytes, ChildMemory, Seconds
from batchcal.measure.children.probe import RehearsalRequest
from batchcal.measure.children.setting import OrderedArguments


class RehearsalArguments(OrderedArguments):
    request: RehearsalRequest
    eval_order: tuple[int, ...] | None = None
    """Order of the samples for evaluations."""


class RehearsalAnswer(Frozen):
    """Memory and times of a plan."""

    held: ChildMemory
    train_peak_bytes: Bytes
    """Peak memory on the device before the first evaluation, including workers."""
    groups: Annotated[int, Field(ge=1)]
    """Optimizer steps that were timed."""
    sample_s: Seconds
    """Mean seconds of fetching, forward and backward, per sample."""
    wait_s: Seconds
    """Part of `sample_s`: waiting for the batch."""
    update_s: Seconds
    """Mean seconds of an optimizer step."""
    eval_sample_s: tuple[Seconds, ...]
    """Seconds per sample, for each of `eval_batches`."""
    foreign_share: Share | None
    """See `StepTime`."""
    last_group_error: str = ""
    """Error of the last, smaller group of an epoch."""


def rehearse(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Run a complete plan."""
    from batchcal.measure.rehearsal.child import rehearse

    return rehearse(RehearsalArguments.model_validate(arguments), context)
