"""Results of a short run of DataLoader workers over shuffled samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.core.values import Record

Start = Literal["fork", "forkserver", "spawn"]
Bytes = Annotated[int, Field(ge=0, le=1 << 50)]


class LoaderWorkers(Record):
    """Rules for every plan with workers."""

    start: Start | None = None
    """Required start method of workers. None: the default of the platform."""
    why_start: str = ""
    why_none: str = ""
    """Reason why no plan has workers. Empty: a plan may have workers."""
    private_bytes: Bytes = 0
    """Private memory of one worker after its first batch, without its batches. 0: not measured."""
    growth_bytes: Bytes = 0
    """Growth of that memory until the worker has read every sample: copied reference counts and caches."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Shuffled samples that one worker read in the run."""

    @property
    def bytes(self) -> int:
        """Private memory of one worker at the end of a training, without its batches."""
        return self.private_bytes + self.growth_bytes
