"""What a caller needs of a calibration, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchcal.calibration.schema import Calibration
from batchcal.core.errors import BatchcalError, NotSaved


@dataclass(frozen=True)
class Need:
    """Which calibration a caller needs, and what may be done to obtain it."""

    rehearsed: bool = True
    """The plan for the requested effective batch must have run completely. False: a plan that follows from what was measured
    will do."""
    needs_effective_batch: bool = False
    """A training follows: refuse to measure while its effective batch is not set."""
    may_measure: bool = True
    """False: only a calibration that exists and is fresh will do."""
    force: bool = False
    """Measure from the beginning even if a fresh calibration exists."""
    dry_run: bool = False
    """Run the search against an assumed machine, without starting a process or writing a file."""
    require_signature: bool = False
    most_trained: int | None = None
    """Largest micro-batch of training to try; evaluation may have more. None: as many as fit."""


@dataclass(frozen=True)
class CalibrationResult:
    """What came of a calibration. Unverified and unsaved results are here too: nothing measured is lost."""

    calibration: Calibration
    path: Path | None
    """Where it lies; None: not written (a dry run, or `not_saved`)."""
    fresh: bool
    """A fresh calibration existed; nothing was measured."""
    notices: tuple[str, ...] = ()
    not_saved: NotSaved | None = None
    stopped: BatchcalError | None = None
    """Why it ended early: Partial (nothing verified) or Interrupted. The calibration holds what there is."""

    @property
    def problem(self) -> BatchcalError | None:
        """What to report once the result is out."""
        return self.stopped or self.not_saved
