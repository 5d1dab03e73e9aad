"""Arguments and function of the child that times micro-batches. Torch is imported only when the function is called."""

from __future__ import annotations

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.probe import TimingRequest
from batchcal.measure.children.setting import OrderedArguments


class TimingArguments(OrderedArguments):
    request: TimingRequest


def time_sizes(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Time several batch sizes, one after another."""
    from batchcal.measure.race.timing import time_sizes

    return time_sizes(TimingArguments.model_validate(arguments), context)
