"""Arguments, answer and function of the child that runs one batch size. Torch is imported only when the function is called."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.child_memory import ChildMemory, Seconds
from batchcal.measure.children.probe import ProbeRequest
from batchcal.measure.children.setting import OrderedArguments


class ProbeArguments(OrderedArguments):
    request: ProbeRequest
    train_order: tuple[int, ...] | None = None
    """`order` for the training step before an evaluation."""
    eval_order: tuple[int, ...] | None = None
    """`order` for an evaluation after training."""


class ProbeAnswer(Frozen):
    """Measurements of a child, in bytes and seconds."""

    held: ChildMemory
    step_s: Annotated[tuple[Seconds, ...], Field(min_length=1)]
    notes: tuple[str, ...] = ()
    evaluation: ProbeAnswer | None = None
    """Measurements of the evaluation after a training."""


def probe(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Run steps at one batch size."""
    from batchcal.measure.inside.child import probe

    return probe(ProbeArguments.model_validate(arguments), context)
