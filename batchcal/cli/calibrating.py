"""The calibration of a command's task, with its progress and notices shown to the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchcal.cli.desk import Desk, options_from
from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from batchcal.calibration.stale import Stale
    from batchcal.cli.views.calibration import Seen
    from batchcal.measure.result import CalibrationResult, Need


@dataclass(frozen=True)
class Destination:
    """Where a calibration lies."""

    output: Path | None = None
    """Absolute. None: the default place."""
    option: str = "--output"
    """The option that named it."""


def calibrated(
    desk: Desk, need: Need, voice: Voice, *, destination: Destination = Destination(), as_before: bool = False
) -> CalibrationResult:
    """The calibration of the desk's task.

    Args:
        as_before: options that are not set are those of the calibration that exists, and no reason to measure again.

    Raises:
        NoCalibration: there is no valid one, and none may be made.
        BatchcalError: it could not be made; see `measure.obtain`.
    """
    import os

    from batchcal.calibration.keys import find_trust
    from batchcal.calibration.locate import existing_of
    from batchcal.calibration.store import Loaded, load
    from batchcal.cli.progress import listening_to_calibration
    from batchcal.detect.detect import detect, detect_for
    from batchcal.measure.obtain import obtain

    reference = desk.task()
    environment = detect()
    path = destination.output or existing_of(reference, os.environ)
    before = load(path, trust=find_trust(os.environ)) if as_before and not need.force else None
    like = before.calibration.options if isinstance(before, Loaded) else None
    options = options_from(desk.settings, limit_bytes=environment.memory.limit.value, like=like)

    def report(stale: Stale) -> None:
        voice.say(f" note: the existing calibration is stale, {stale}; measuring again")

    return obtain(
        reference,
        options,
        need,
        environment=environment,
        detect_fully=lambda: detect_for(options.device),
        output=destination.output,
        output_name=destination.option,
        stale_found=report,
        listening=lambda: listening_to_calibration(voice),
    )


def seen_now(result: CalibrationResult) -> Seen:
    """A calibration as it is shown: what was just measured or found fresh is not stale."""
    from batchcal.cli.views.calibration import Seen
    from batchcal.core.clock import SystemClock

    return Seen(calibration=result.calibration, path=result.path, stale=None, at=SystemClock().now(), notices=result.notices)
