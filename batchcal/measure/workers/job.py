"""Arguments, answer and function of the child that tries DataLoader workers. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.calibration.records.workers import Bytes, Start
from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.workload.spec.reference import TaskReference

Count = Annotated[int, Field(ge=0, le=1 << 40)]


class WorkersArguments(Frozen):
    reference: TaskReference
    seed: int
    workers: Annotated[int, Field(ge=1)]
    """Number of workers to start: two, or the one that the user requested."""
    read_s: float
    """Seconds of reading, for the workers and for the process each."""
    hang_s: float
    """Seconds after which workers that deliver nothing are considered hung."""


class WorkersAnswer(Frozen):
    """Result of a trial of workers."""

    holding: str = ""
    """The resource that forked workers would share or lack."""
    does_not_pickle: str = ""
    """Reason why the dataset cannot be sent to workers. In this case none was started, because of the `holding`."""
    start: Start | None = None
    """Start method of the workers. None: the platform's default."""
    failed: Literal["", "hang", "die", "raise"] = ""
    error: str = ""
    """Error of the workers, if they failed."""
    repeats: str = ""
    """The random generator of which each worker has a copy, if reads draw from it."""
    not_compared: str = ""
    """Reason why samples were not compared."""
    compared: Count = 0
    """Samples that both the workers and the process read."""
    wrong: Count = 0
    """Number of these that differ although the process reads them alike each time."""
    swapped: Count = 0
    """Number of these that are the sample of another index."""
    example: str = ""
    """Example of a wrong sample."""
    samples: Count = 0
    """Samples that each worker read."""
    private_bytes: Bytes = 0
    """Private memory of the largest worker after the first batch."""
    copied_bytes: Bytes = 0
    """Maximum that one forked worker adds to that until it has read all samples."""
    kept_bytes: Bytes = 0
    """Memory that the process itself keeps after it has read all samples. A worker keeps as much."""


def examine_workers(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Check that DataLoader workers return the same samples, and measure their memory."""
    from batchcal.measure.workers.child import examine_workers

    return examine_workers(WorkersArguments.model_validate(arguments), context)
