"""One run of a command: its settings and its result."""

from __future__ import annotations

from dataclasses import dataclass

from batchcal.calibration.schema import Isolation
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Outcome
from batchcal.measure.commands.reports import Reports
from batchcal.workload.command.template import ACCUMULATION_STEPS, BATCH_SIZE, EFFECTIVE_BATCH, SCRATCH


@dataclass(frozen=True)
class CommandSettings:
    """One run of a command: values for its placeholders, and its process environment."""

    allocator: str
    batch: int
    accumulation_steps: int
    eval_batch: int
    num_workers: int
    threads: int
    world_size: int

    def values(self, scratch: str) -> dict[str, str]:
        """Return the text for each placeholder."""
        return {
            BATCH_SIZE: str(self.batch),
            "eval_batch_size": str(self.eval_batch),
            ACCUMULATION_STEPS: str(self.accumulation_steps),
            EFFECTIVE_BATCH: str(self.batch * self.accumulation_steps * self.world_size),
            "num_workers": str(self.num_workers),
            "threads": str(self.threads),
            SCRATCH: scratch,
        }


@dataclass(frozen=True)
class CommandRun:
    """Result of one run."""

    outcome: Outcome
    reports: Reports
    ending: Ending
    wall_s: float

    @property
    def isolation(self) -> Isolation:
        """Protection that the processes had."""
        return Isolation(launcher="spawn", fence=("prediction", *self.ending.layers), missing=self.ending.missing)
