"""Arguments and function of the child that tries sizes. Torch is imported only when the function is called."""

from __future__ import annotations

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.setting import JobArguments


class ScoutArguments(JobArguments):
    sizes: tuple[int, ...]
    limit_s: float


def scout(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Find which of several batch sizes the task accepts."""
    from batchcal.measure.inside.scout import scout

    return scout(ScoutArguments.model_validate(arguments), context)
