"""DataLoader workers, as a short run over shuffled samples showed them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.core.values import Record

Start = Literal["fork", "forkserver", "spawn"]
Bytes = Annotated[int, Field(ge=0, le=1 << 50)]


class LoaderWorkers(Record):
    """What any plan with workers has to respect."""

    start: Start | None = None
    """How workers have to be started. None: as the platform does."""
    why_start: str = ""
    why_none: str = ""
    """Why no plan has workers. Empty: a plan may have some."""
    private_bytes: Bytes = 0
    """Private memory of one worker after its first batch, its batches apart. 0: not measured."""
    growth_bytes: Bytes = 0
    """What one worker adds to that by the time it has read every sample: copied reference counts and caches."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Shuffled samples that one worker read in the run."""

    @property
    def bytes(self) -> int:
        """Private memory of one worker at the end of a training, its batches apart."""
        return self.private_bytes + self.growth_bytes
