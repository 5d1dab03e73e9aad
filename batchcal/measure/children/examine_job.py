"""Arguments and function of the child that examines a task. Torch is imported only when the function is called."""

from __future__ import annotations

from typing import Literal

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.probe import Examination
from batchcal.measure.children.setting import OrderedArguments

Curve = Literal["traced", "profiled", "assumed"]
"""Source of the static curve: the model without memory, the profiler, or the bytes of a batch. Each one is used if the one before
ended the child."""


class ExamineArguments(OrderedArguments):
    budget_bytes: int
    """Used only to choose the sizes of the static curve."""
    limit_s: float
    curve: Curve = "traced"
    known: Examination | None = None
    """Examination under another policy. If it is given, only the parts that depend on the policy are measured."""


def examine(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Examine the task: a few tiny steps, the worst samples, the static memory curve."""
    from batchcal.measure.inside.child import examine

    return examine(ExamineArguments.model_validate(arguments), context)
