"""Arguments, answer and function of the child that times DataLoaders. Torch is imported only when a function is called."""

from __future__ import annotations

from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.child_memory import Seconds
from batchcal.measure.pipeline.candidates import CandidateLimits, LoaderCandidate
from batchcal.workload.spec.reference import TaskReference


class FetchArguments(Frozen):
    reference: TaskReference
    seed: int
    batch: int
    """Samples per batch, if they arrive fast enough. Else fewer."""
    fetches: int
    """Minimum number of batches per turn."""
    until_s: float
    """End of the rounds on the monotonic clock, which all processes share."""
    cores: float
    pinned_workers: int | None
    room: CandidateLimits
    fewer_than: int | None = None
    """Number of workers that ended a child before. Only fewer are tried."""
    why_fewer: str = ""


class FetchAnswer(Frozen):
    batch: int
    fetches: int
    """Batches per turn."""
    candidates: tuple[LoaderCandidate, ...]
    """The simplest first. The index is the place in the race."""
    rounds: tuple[dict[int, tuple[Seconds, ...]], ...]
    """Seconds of waiting for each fetch, by place."""
    failed: dict[int, str]
    """Reason why a candidate could not run, by place."""
    workers: LoaderWorkers
    """Result of the trial before the race."""


def fetch(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Measure the times of DataLoader settings."""
    from batchcal.measure.pipeline.fetch import fetch

    return fetch(FetchArguments.model_validate(arguments), context)
