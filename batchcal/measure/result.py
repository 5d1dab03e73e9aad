"""What comes of a calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchcal.calibration.schema import Calibration
from batchcal.core.errors import BatchcalError, NotSaved


@dataclass(frozen=True)
class CalibrationResult:
    """What came of a calibration. Unverified and unsaved results are here too: nothing measured is lost."""

    calibration: Calibration
    path: Path | None
    """Where it lies; None: not written (a dry run, or `not_saved`)."""
    fresh: bool
    """A fresh calibration was there already; nothing was measured."""
    notices: tuple[str, ...] = ()
    not_saved: NotSaved | None = None
    stopped: BatchcalError | None = None
    """Why it ended early: Partial (nothing verified) or Interrupted. The calibration holds what there is."""
