"""The command that a calibration measured, if the training is a command and not a task."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.core.values import Record

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CommandRecord(Record):
    """Template of a command, and observations that hold for all of its runs."""

    words: tuple[str, ...]
    """The command line with its placeholders. Secrets are hidden."""
    placeholders: tuple[str, ...]
    rows_per_sample: Positive | None = None
    """Rows that the loaders of all processes returned per step, divided by `{batch_size}`. None: no loader was observed, so the
    batch size of the command line counts."""
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """Backward passes per optimizer step of one process, where the command line requests one."""
    world_size: Annotated[int, Field(ge=1)] = 1
    """Processes that train together in each run, by WORLD_SIZE."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """DataLoader workers that the command uses by itself."""
    start_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds from the start of the command to the end of its second optimizer step."""

    @property
    def accumulates(self) -> bool:
        """True if the command line sets the number of micro-batches per optimizer step."""
        return "accumulation_steps" in self.placeholders or "effective_batch" in self.placeholders
