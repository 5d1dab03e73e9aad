"""Arguments, answer and function of the child that runs a complete plan. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.calibration.speed import Share
from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.job import Bytes, Held, Seconds, Setting
from batchcal.plan.plan import Plan


class RehearsalArguments(Frozen):
    setting: Setting
    plan: Plan
    micro_batches: tuple[int, ...]
    """Of each optimizer step: the plan's, or as many of them as there is time for."""
    eval_batches: tuple[int, ...]
    """Sizes to evaluate with, the last one the plan's; empty: none."""
    worst_case: bool
    """Whether groups of the largest samples are run, too."""
    least_s: float
    limit_s: float
    """No further group is timed so many seconds after the warm-up."""
    order: tuple[int, ...] | None
    eval_order: tuple[int, ...] | None = None
    accelerator_allowed_bytes: int | None


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
