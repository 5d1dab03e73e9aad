"""What travels to the child that fetches, and what it tells, as JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Frozen
from batchcal.measure.pipeline.candidates import Candidate, Room
from batchcal.measure.request import Seconds
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
    excluded: dict[str, str] = {}
    """By candidate (`name_of`): those that ended a child before, and how."""


class Turn(Frozen):
    """One candidate in one round."""

    candidate: Candidate
    batch_s: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)]
    """Of each fetch: seconds that it was waited for."""


class FetchAnswer(Frozen):
    batch: int
    candidates: tuple[Candidate, ...]
    """The simplest first; the places in the race."""
    rounds: tuple[dict[int, tuple[Seconds, ...]], ...]
    """By place: seconds that each fetch was waited for."""
    failed: dict[int, str]
    """By place: why it could not be run."""
    notes: tuple[str, ...] = ()


def name_of(candidate: Candidate) -> str:
    """`2 workers, prefetch 4`, as an index."""
    return f"{candidate.num_workers}/{candidate.prefetch_factor or 0}"
