"""What `calibrate` and `train` share: a fresh calibration is taken, else one is made, under the eyes of the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchcal.cli.desk import Desk, find_fresh, options_from
from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from batchcal.calibration.schema import Calibration
    from batchcal.cli.views.calibration import Seen
    from batchcal.core.errors import BatchcalError


@dataclass(frozen=True)
class Wish:
    """How it was asked for."""

    output: Path | None = None
    """Absolute."""
    force: bool = False
    dry_run: bool = False
    require_signature: bool = False
    may_measure: bool = True
    """False: only a fresh calibration will do."""
    as_before: bool = False
    """What is not set is as it was in the calibration that is there, and no reason to measure again."""


@dataclass(frozen=True)
class Found:
    """A calibration to go on with."""

    calibration: Calibration
    path: Path | None
    """None: it was not written."""
    notices: tuple[str, ...] = ()
    measured: bool = False
    """False: it was there already."""
    problem: BatchcalError | None = None
    """It was stopped, or could not be saved: to be told once the result is out."""


def calibrated(desk: Desk, wish: Wish, voice: Voice) -> Found:
    """The calibration of the desk's task.

    Raises:
        NoCalibration: there is no fresh one, and none may be made.
        BatchcalError: it could not be made; see `measure.calibrate`.
    """
    import os

    from batchcal.calibration.keys import find_trust
    from batchcal.calibration.store import Loaded, Missing, existing_path, load, refusal
    from batchcal.detect.detect import detect
    from batchcal.plan.make import is_rehearsed

    reference = desk.task()
    environment = detect()
    path = wish.output or existing_path(Path(reference.directory), os.environ)
    before = load(path, trust=find_trust(os.environ)) if wish.as_before and not wish.force else None
    like = before.calibration.options if isinstance(before, Loaded) else None
    options = options_from(desk.settings, limit_bytes=environment.memory.limit.value, like=like)
    if not wish.force and not wish.dry_run:
        found = find_fresh(reference, options, environment, path, require_signature=wish.require_signature)
        # A training takes a plan that was not run whole; who asks to calibrate asks for that.
        enough = isinstance(found, Loaded) and (wish.as_before or is_rehearsed(found.calibration, options))
        if isinstance(found, Loaded) and found.calibration.is_usable and enough:
            return Found(calibration=found.calibration, path=found.path, notices=found.notices)
        if not wish.may_measure:
            raise refusal(Missing(path=path) if found is None or isinstance(found, Loaded) else found, path)
        if found is not None and not isinstance(found, Loaded):
            voice.say(f" note: the calibration that is there is stale, {found}; measuring again")
    from batchcal.cli.progress import listening
    from batchcal.detect.detect import detect_for
    from batchcal.measure.calibrate import calibrate

    with listening(voice, "calibration") as progress:
        result = calibrate(
            reference,
            options,
            environment=detect_for(options.device),
            output=wish.output,
            force=wish.force,
            dry_run=wish.dry_run,
            require_signature=wish.require_signature,
            progress=progress,
        )
    return Found(
        calibration=result.calibration,
        path=result.path,
        notices=result.notices,
        measured=not result.fresh,
        problem=result.stopped or result.not_saved,
    )


def seen_now(found: Found) -> Seen:
    """A calibration as it is looked at: what was just measured or found fresh is not stale."""
    from batchcal.cli.views.calibration import Seen
    from batchcal.core.clock import SystemClock

    return Seen(calibration=found.calibration, path=found.path, stale=None, at=SystemClock().now(), notices=found.notices)
