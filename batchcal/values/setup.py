"""Settings of a training process."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Record

Count = Annotated[int, Field(ge=0, le=2**31)]


class Setup(Record):
    """Settings that determine memory and speed of a run, in addition to the task and the machine."""

    device: str
    allocator: str
    """Name of the policy."""
    micro_batches: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Samples in each micro-batch of one optimizer step on one rank."""
    eval_batch: Count
    num_workers: Count
    prefetch_factor: int | None
    multiprocessing_context: str | None
    intra_op_threads: Count
    interop_threads: Count
    world_size: Annotated[int, Field(ge=1)] = 1
