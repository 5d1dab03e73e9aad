"""What was learned of the input pipeline alone: how fast which DataLoader brings batches, without a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from batchcal.calibration.workers import LoaderWorkers
from batchcal.core.values import Record

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Left = Literal["", "slower", "behind", "failed", "no-time"]
"""Why a candidate is not the winner: "" it ran to the end; `slower`: by more than 15 %; `behind`: by less, and surely;
`failed`: it could not be run, or arithmetic forbade it; `no-time`: none was left to try it."""


class LoaderConfig(Record):
    """What of a DataLoader is chosen."""

    num_workers: Annotated[int, Field(ge=0, le=1024)]
    prefetch_factor: int | None
    persistent_workers: bool


class LoaderTiming(Record):
    """One candidate."""

    config: LoaderConfig
    samples_per_s: PositiveFloat | None
    """In its best round: what else runs only ever makes one longer. None: it was never timed."""
    p95_s: PositiveFloat | None
    """95 of 100 batches were there within this time after they were asked for."""
    rounds: int
    left: Left
    why: str = ""


class PipelineResult(Record):
    kind: Literal["pipeline"] = "pipeline"
    created_at: AwareDatetime
    batch: Annotated[int, Field(ge=1)]
    """Samples in the batches that were fetched."""
    fetches: int
    """Batches fetched a round."""
    timings: tuple[LoaderTiming, ...]
    """The fastest first."""
    settled: bool
    """False: time ended before a further round could not have changed the winner."""
    tie: Share
    """Within this share of the fastest none is called faster."""
    wall_s: float
    workers: LoaderWorkers | None = None
    """What any plan with workers respects. None: written before batchcal tried workers."""

    @property
    def winner(self) -> LoaderTiming:
        return self.timings[0]

    def of(self, num_workers: int) -> LoaderTiming | None:
        """The fastest with so many workers; None: none was timed."""
        return next((t for t in self.timings if t.config.num_workers == num_workers and t.samples_per_s is not None), None)
