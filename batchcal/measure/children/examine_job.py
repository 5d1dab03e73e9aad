"""Arguments and function of the child that examines a task. Torch is imported only when the function is called."""

from __future__ import annotations

from typing import Literal

from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.probe import Examination
from batchcal.measure.children.setting import JobArguments

Curve = Literal["traced", "profiled", "assumed"]
"""Source of the static curve, each where the one before ended the child: the model without memory, the profiler, the bytes of a
batch."""


class ExamineArguments(JobArguments):
    budget_bytes: int
    """Only to choose the sizes of the static curve."""
    limit_s: float
    curve: Curve = "traced"
    known: Examination | None = None
    """What was found under another policy: then only what depends on the policy is measured."""


def examine(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """What the task is: a few tiny steps, the worst samples, the static memory curve."""
    from batchcal.measure.inside.child import examine

    return examine(ExamineArguments.model_validate(arguments), context)
