"""Arguments and function of the child that traces a shape of the model. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Final

from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.workload.reference import TaskReference

BATCHES: Final = (2, 8, 32, 128)


class TraceArguments(Frozen):
    reference: TaskReference
    seed: int
    batches: tuple[int, ...]
    """Micro-batches whose step is traced, where the data has as many samples. None: only what the model holds is told."""
    limit_s: float
    """No further size is traced after so many seconds."""


def trace(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """The memory of a shape, without taking it."""
    from batchcal.measure.shapes.child import trace

    return trace(TraceArguments.model_validate(arguments), context)
