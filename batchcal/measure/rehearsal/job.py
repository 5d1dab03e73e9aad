"""Arguments, answer and function of the child that runs a complete plan. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.calibration.speed import Share
from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.held import Bytes, Held, Seconds
from batchcal.measure.children.probe import RehearsalRequest
from batchcal.measure.children.setting import JobArguments


class RehearsalArguments(JobArguments):
    request: RehearsalRequest
    eval_order: tuple[int, ...] | None = None
    """For evaluations."""


class RehearsalAnswer(Frozen):
    """What a plan held and took."""

    held: Held
    train_peak_bytes: Bytes
    """Most held on the device before the first evaluation, by workers too."""
    groups: Annotated[int, Field(ge=1)]
    """Optimizer steps that were timed."""
    sample_s: Seconds
    """Mean seconds of fetching, forward and backward a sample."""
    wait_s: Seconds
    """Of these, waiting for the batch."""
    update_s: Seconds
    """Mean seconds of an optimizer step."""
    eval_sample_s: tuple[Seconds, ...]
    """Seconds a sample, for each of `eval_batches`."""
    foreign_share: Share | None
    """See `StepTime`."""
    last_group_error: str = ""
    """How the last, smaller group of an epoch failed."""


def rehearse(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """A whole plan."""
    from batchcal.measure.rehearsal.child import rehearse

    return rehearse(RehearsalArguments.model_validate(arguments), context)
