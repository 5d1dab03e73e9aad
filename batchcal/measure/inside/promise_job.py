"""Arguments, answer and function of the child that checks promises. Torch is imported only when a function is called."""

from __future__ import annotations

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.setting import JobArguments


class PromiseArguments(JobArguments):
    samples: int = 64
    """Maximum number of samples to choose batches from."""


class PromiseAnswer(Frozen):
    promises: tuple[PromiseCheck, ...]


def check_promises(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Check whether the task keeps its promises."""
    from batchcal.measure.inside.promises import check_promises

    return check_promises(PromiseArguments.model_validate(arguments), context)
