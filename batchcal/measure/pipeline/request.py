"""What travels to the child that fetches, and what it tells, as JSON."""

from __future__ import annotations

from batchcal.core.values import Frozen
from batchcal.measure.children.request import Seconds
from batchcal.measure.pipeline.candidates import Candidate, Room
from batchcal.workload.reference import TaskReference


class FetchArguments(Frozen):
    reference: TaskReference
    seed: int
    batch: int
    """Samples a batch, if they come fast enough; else fewer."""
    fetches: int
    """Batches a round."""
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
    candidates: tuple[Candidate, ...]
    """The simplest first; the places in the race."""
    rounds: tuple[dict[int, tuple[Seconds, ...]], ...]
    """By place: seconds that each fetch was waited for."""
    failed: dict[int, str]
    """By place: why it could not be run."""
