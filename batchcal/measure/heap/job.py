"""Arguments, answer and functions of the children that measure how the heap grows.

Torch is imported only when a function is called.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.job import Setting


class HeapArguments(Frozen):
    """For a training with random batches."""

    setting: Setting
    batch: int
    limit_s: float
    order: tuple[int, ...] | None
    """See `ProbeArguments`."""


class HandlesArguments(Frozen):
    """For a training with batches from workers."""

    setting: Setting
    batch: int
    """A small one."""
    limit_s: float
    order: tuple[int, ...] | None
    """See `ProbeArguments`."""


class HandlesAnswer(Frozen):
    lost_blocks: Annotated[int, Field(ge=0)] | None
    """Blocks of a step that cannot be used again. None: unknown, of a stream, or since time ended before."""


def train_varied(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """The peaks of a training whose batches change their shapes."""
    from batchcal.measure.heap.child import train_varied

    return train_varied(HeapArguments.model_validate(arguments), context)


def count_lost_blocks(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Blocks of a step that are lost to handles of workers' batches."""
    from batchcal.measure.heap.handles import count_lost_blocks

    return count_lost_blocks(HandlesArguments.model_validate(arguments), context)
