"""Requirements of a caller on a calibration, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchcal.calibration.schema import Calibration
from batchcal.core.errors import BatchcalError, NotSaved


@dataclass(frozen=True)
class Need:
    """Requirements of a caller on a calibration, and the allowed ways to obtain it."""

    rehearsed: bool = True
    """The plan for the requested effective batch must have run completely. False: a plan derived from measurements is enough."""
    needs_effective_batch: bool = False
    """A training follows. Refuse to measure if its effective batch is not set."""
    may_measure: bool = True
    """False: only an existing, fresh calibration is accepted."""
    force: bool = False
    """Measure from the beginning even if a fresh calibration exists."""
    dry_run: bool = False
    """Run the search against an assumed machine, without starting a process or writing a file."""
    require_signature: bool = False
    require_settled: bool = False
    """The search must have finished. Continue an unfinished one, and refuse the result if it is still unfinished."""
    by_setting: bool = False
    """The gain over PyTorch's defaults must have been measured for each setting alone."""
    most_trained: int | None = None
    """Largest micro-batch of training to try; evaluation may have more. None: as many as fit."""


@dataclass(frozen=True)
class CalibrationResult:
    """Result of a calibration. Unverified and unsaved results are included: no measurement is lost."""

    calibration: Calibration
    path: Path | None
    """Path of the file. None: not written (a dry run, or `not_saved`)."""
    fresh: bool
    """True if a fresh calibration existed and nothing was measured."""
    notices: tuple[str, ...] = ()
    not_saved: NotSaved | None = None
    stopped: BatchcalError | None = None
    """Error that ended it early: Partial (nothing verified) or Interrupted. The calibration holds the results until then."""

    @property
    def problem(self) -> BatchcalError | None:
        """Error to report after the result."""
        return self.stopped or self.not_saved
