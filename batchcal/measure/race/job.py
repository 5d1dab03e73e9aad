"""Arguments and function of the child that times micro-batches. Torch is imported only when the function is called."""

from __future__ import annotations

from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.probe import LapRequest
from batchcal.measure.children.setting import OrderedArguments


class LapArguments(OrderedArguments):
    request: LapRequest


def lap(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Time several batch sizes, one after another."""
    from batchcal.measure.race.lap import lap

    return lap(LapArguments.model_validate(arguments), context)
