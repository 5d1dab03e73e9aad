"""Measurement of the input pipeline alone: speed of each DataLoader, without a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.core.values import Record

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Left = Literal["", "slower", "behind", "failed", "no-time"]
"""Reason why a candidate is not the winner. "": it ran to the end; `slower`: by more than 15 %; `behind`: by less, but certainly;
`failed`: it could not be run, or arithmetic excludes it; `no-time`: no time was left to try it."""


class LoaderConfig(Record):
    """Chosen arguments of a DataLoader."""

    num_workers: Annotated[int, Field(ge=0, le=1024)]
    prefetch_factor: int | None
    persistent_workers: bool


class LoaderTiming(Record):
    """Timing of one candidate."""

    config: LoaderConfig
    samples_per_s: PositiveFloat | None
    """Speed in its best round: other load only makes a round longer. None: it was never timed."""
    p95_s: PositiveFloat | None
    """95 of 100 batches arrived within this time after the request."""
    rounds: int
    left: Left
    why: str = ""


class PipelineResult(Record):
    kind: Literal["pipeline"] = "pipeline"
    created_at: AwareDatetime
    batch: Annotated[int, Field(ge=1)]
    """Samples per fetched batch."""
    fetches: int
    """Batches fetched per round."""
    timings: tuple[LoaderTiming, ...]
    """Fastest first."""
    settled: bool
    """False: the time ran out while a further round could still have changed the winner."""
    tie: Share
    """Candidates within this share of the fastest count as equally fast."""
    wall_s: float
    workers: LoaderWorkers | None = None
    """Rules for every plan with workers. None: written before batchcal tried workers."""

    @property
    def winner(self) -> LoaderTiming:
        return self.timings[0]

    def of(self, num_workers: int) -> LoaderTiming | None:
        """Return the fastest timing with `num_workers` workers. None: none was timed."""
        return next((t for t in self.timings if t.config.num_workers == num_workers and t.samples_per_s is not None), None)
