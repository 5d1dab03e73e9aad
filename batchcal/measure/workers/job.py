"""Arguments, answer and function of the child that tries DataLoader workers. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.calibration.workers import Bytes, Start
from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.workload.reference import TaskReference

Count = Annotated[int, Field(ge=0, le=1 << 40)]


class WorkersArguments(Frozen):
    reference: TaskReference
    seed: int
    workers: Annotated[int, Field(ge=1)]
    """To start: two, or the one that the user asked for."""
    read_s: float
    """Seconds of reading, for the workers and for the process each."""
    hang_s: float
    """Workers that bring nothing for so long hang."""


class WorkersAnswer(Frozen):
    """What the workers did."""

    holding: str = ""
    """The resource that forked workers would share or lack."""
    does_not_pickle: str = ""
    """Why workers cannot be sent the dataset; then none was started beside a `holding`."""
    start: Start | None = None
    """How the workers were started. None: as the platform does."""
    failed: Literal["", "hang", "die", "raise"] = ""
    error: str = ""
    """Of the workers, where they failed."""
    repeats: str = ""
    """The random generator of which each worker has a copy, where reads draw from it."""
    not_compared: str = ""
    """Why samples were not compared."""
    compared: Count = 0
    """Samples that workers and process both read."""
    wrong: Count = 0
    """Of these: samples that differ although the process reads them alike each time."""
    swapped: Count = 0
    """Of these: samples that are another index's."""
    example: str = ""
    """One wrong sample."""
    samples: Count = 0
    """That each worker read."""
    private_bytes: Bytes = 0
    """Of one worker after the first batch, the largest."""
    copied_bytes: Bytes = 0
    """What one forked worker adds to that until it has read all samples, at most."""
    kept_bytes: Bytes = 0
    """What the process itself comes to keep of all samples: a worker keeps as much."""


def examine_workers(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Whether DataLoader workers return the same samples, and what they hold."""
    from batchcal.measure.workers.child import examine_workers

    return examine_workers(WorkersArguments.model_validate(arguments), context)
