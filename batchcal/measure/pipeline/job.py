"""Arguments, answer and function of the child that times DataLoaders. Torch is imported only when a function is called."""

from __future__ import annotations

from batchcal.calibration.workers import LoaderWorkers
from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.held import Seconds
from batchcal.measure.pipeline.candidates import Candidate, Room
from batchcal.workload.reference import TaskReference


class FetchArguments(Frozen):
    reference: TaskReference
    seed: int
    batch: int
    """Samples a batch, if they come fast enough; else fewer."""
    fetches: int
    """Batches a turn, at least."""
    until_s: float
    """Of the monotonic clock, which all processes share: when the rounds end."""
    cores: float
    pinned_workers: int | None
    room: Room
    fewer_than: int | None = None
    """Workers: so many ended a child before."""
    why_fewer: str = ""


class FetchAnswer(Frozen):
    batch: int
    fetches: int
    """Batches a turn."""
    candidates: tuple[Candidate, ...]
    """The simplest first; the places in the race."""
    rounds: tuple[dict[int, tuple[Seconds, ...]], ...]
    """By place: seconds that each fetch was waited for."""
    failed: dict[int, str]
    """By place: why it could not be run."""
    workers: LoaderWorkers
    """Of the trial before the race."""


def fetch(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Times of DataLoader settings."""
    from batchcal.measure.pipeline.fetch import fetch

    return fetch(FetchArguments.model_validate(arguments), context)
