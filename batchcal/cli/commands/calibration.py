"""The calibration of a command's task, with its progress and notices shown to the user."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchcal.calibration.keys import find_trust
from batchcal.calibration.locate import existing_of
from batchcal.calibration.store import Loaded, check_settled, load
from batchcal.cli.invocation import Invocation, options_from
from batchcal.cli.output.messages import Messages
from batchcal.cli.output.progress import listening_to_calibration
from batchcal.core.clock import SystemClock
from batchcal.detect.detect import detect, detect_for

if TYPE_CHECKING:
    from batchcal.calibration.stale import Stale
    from batchcal.cli.views.calibration.view import ShownCalibration
    from batchcal.measure.result import CalibrationResult, Need


@dataclass(frozen=True)
class Destination:
    """Place of a calibration file."""

    output: Path | None = None
    """Absolute path. None: the default place."""
    option: str = "--output"
    """Option that sets `output`."""


def obtain_calibration(
    invocation: Invocation,
    need: Need,
    messages: Messages,
    *,
    destination: Destination = Destination(),
    reuse_options: bool = False,
) -> CalibrationResult:
    """Return the calibration of the invocation's task.

    Args:
        reuse_options: take options that are not set from the existing calibration. They are then no reason to measure again.

    Raises:
        NoCalibration: there is no valid calibration, and measuring is not allowed. Or its search must finish and did not.
        BatchcalError: the calibration failed; see `measure.obtain`.
    """
    from batchcal.measure.obtain import obtain

    reference = invocation.task()
    environment = detect()
    path = destination.output or existing_of(reference, os.environ)
    loaded = load(path, trust=find_trust(os.environ)) if reuse_options and not need.force else None
    existing = loaded.calibration.options if isinstance(loaded, Loaded) else None
    options = options_from(
        invocation.settings,
        limit_bytes=environment.memory.limit.value,
        existing=existing,
        of_command=bool(reference.command),
    )

    def report(stale: Stale) -> None:
        messages.print(f" note: the existing calibration is stale ({stale}); batchcal measures again")

    result = obtain(
        reference,
        options,
        need,
        environment=environment,
        detect_fully=lambda: detect_for(options.device),
        output=destination.output,
        output_name=destination.option,
        on_stale=report,
        progress_context=lambda: listening_to_calibration(messages),
    )
    if need.require_settled and result.problem is None:
        check_settled(result.calibration)
    return result


def current_view(result: CalibrationResult) -> ShownCalibration:
    """Return a calibration to show. It is not stale: it was just measured or is fresh."""
    from batchcal.cli.views.calibration.view import ShownCalibration

    return ShownCalibration(
        calibration=result.calibration, path=result.path, stale=None, at=SystemClock().now(), notices=result.notices
    )
