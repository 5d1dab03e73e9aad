"""Arguments, answer and function of the child that counts lost blocks. Torch is imported only when the function is called."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.setting import OrderedArguments


class HandlesArguments(OrderedArguments):
    batch: int
    """Size of a small batch."""
    limit_s: float


class HandlesAnswer(Frozen):
    lost_blocks: Annotated[int, Field(ge=0)] | None
    """Blocks of a step that cannot be used again. None: unknown, because the data is a stream or the time ended early."""


def count_lost_blocks(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Count the blocks of a step that are lost to handles of workers' batches."""
    from batchcal.measure.heap.handles import count_lost_blocks

    return count_lost_blocks(HandlesArguments.model_validate(arguments), context)
