"""Arguments and function of the child that traces a shape of the model. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Final

from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.workload.spec.reference import TaskReference

BATCHES: Final = (2, 8, 32, 128)


class TraceArguments(Frozen):
    reference: TaskReference
    seed: int
    batches: tuple[int, ...]
    """Micro-batches to trace a step with, if the data has as many samples. Empty: report only the memory of the model."""
    limit_s: float
    """Seconds after which no further size is traced."""


def trace(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Estimate the memory of a shape without allocating it."""
    from batchcal.measure.shapes.child import trace

    return trace(TraceArguments.model_validate(arguments), context)
