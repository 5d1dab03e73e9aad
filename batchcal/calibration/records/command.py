"""The command that a calibration measured, if the training is a command and not a task."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Record


class CommandRecord(Record):
    """Template of a command, and observations that hold for all of its runs."""

    words: tuple[str, ...]
    """The command line with its placeholders. Secrets are hidden."""
    placeholders: tuple[str, ...]
    world_size: Annotated[int, Field(ge=1)] = 1
    """Processes that train together in each run, by WORLD_SIZE."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """DataLoader workers that the command uses by itself."""

    @property
    def accumulates(self) -> bool:
        """True if the command line sets the number of micro-batches per optimizer step."""
        return "accumulation_steps" in self.placeholders or "effective_batch" in self.placeholders
