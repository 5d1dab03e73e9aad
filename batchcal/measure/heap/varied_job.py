"""Arguments and function of the child that trains with random batches. Torch is imported only when the function is called."""

from __future__ import annotations

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.setting import OrderedArguments
from batchcal.measure.heap.trial import HeapRequest


class HeapArguments(OrderedArguments):
    request: HeapRequest


def train_varied(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Measure the peaks of a training whose batches change their shapes."""
    from batchcal.measure.heap.child import train_varied

    return train_varied(HeapArguments.model_validate(arguments), context)
