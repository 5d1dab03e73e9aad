"""`calibrate --shape`: requested shapes of a model, saved with the calibration of the task."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from batchcal.calibration.keys import find_or_make_trust
from batchcal.calibration.place import check_place
from batchcal.calibration.store import save
from batchcal.cli.output.messages import Messages
from batchcal.cli.output.progress import listening_to_calibration
from batchcal.core.errors import BatchcalError
from batchcal.measure.deadline import Deadline
from batchcal.workload.spec.reference import parse_arguments

if TYPE_CHECKING:
    from batchcal.cli.invocation import Invocation
    from batchcal.measure.result import CalibrationResult
    from batchcal.workload.spec.reference import Scalar


def parse_shapes(texts: Iterable[str]) -> list[dict[str, Scalar]]:
    """Parse the arguments of each shape, as typed.

    Raises:
        UsageError: a part that is not NAME=VALUE.
    """
    return [parse_arguments(text, name="shape") for text in texts]


def add_shapes(
    invocation: Invocation, result: CalibrationResult, shapes: Sequence[dict[str, Scalar]], messages: Messages, *, start_s: float
) -> CalibrationResult:
    """Add the estimated needs of `shapes` to `result`, in place of earlier shapes, and write its file.

    An error becomes its `stopped`: the calibration itself was made and is shown. `start_s` is the start of the command in
    `time.monotonic`.
    """
    from batchcal.measure.shapes.shapes import batches_by, estimate_shapes

    calibration = result.calibration
    if result.path is not None:
        check_place(result.path, name="the calibration")
    try:
        with listening_to_calibration(messages) as progress:
            estimates = estimate_shapes(
                invocation.task(),
                shapes,
                seed=invocation.settings.calibrate.seed,
                batches=batches_by(calibration.size_rule),
                progress=progress,
                memory_limit_bytes=invocation.settings.calibrate.memory_limit,
                deadline=Deadline(invocation.settings.calibrate.time_limit, start_s),
            )
        calibration = calibration.model_copy(update={"shapes": estimates})
        if result.path is not None:
            save(calibration, result.path, key=find_or_make_trust(os.environ, require_signature=False).key)
    except BatchcalError as error:
        return replace(result, calibration=calibration, stopped=error)
    messages.print("batchcal plan --shapes predicts a plan for each shape")
    return replace(result, calibration=calibration)
