"""`calibrate --shape`: requested shapes of a model, saved with the calibration of the task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from batchcal.cli.output.messages import Messages

if TYPE_CHECKING:
    from batchcal.cli.invocation import Invocation
    from batchcal.measure.result import CalibrationResult
    from batchcal.workload.spec.reference import Scalar


def parsed(texts: Iterable[str]) -> list[dict[str, Scalar]]:
    """Parse the arguments of each shape, as typed.

    Raises:
        UsageError: a part that is not NAME=VALUE.
    """
    from batchcal.workload.spec.reference import parse_arguments

    return [parse_arguments(text, name="shape") for text in texts]


def shaped(
    invocation: Invocation, found: CalibrationResult, shapes: Sequence[dict[str, Scalar]], voice: Messages, *, began_s: float
) -> CalibrationResult:
    """Add the estimated needs of `shapes` to `found`, in place of earlier shapes, and write its file.

    An error becomes its `stopped`: the calibration itself was made and is shown. `began_s` is the start of the command in
    `time.monotonic`.
    """
    import os

    from batchcal.calibration.keys import find_or_make_trust
    from batchcal.calibration.place import check_place
    from batchcal.calibration.store import save
    from batchcal.cli.output.progress import listening_to_calibration
    from batchcal.core.errors import BatchcalError
    from batchcal.measure.deadline import Deadline
    from batchcal.measure.shapes.shapes import batches_by, estimate_shapes

    calibration = found.calibration
    if found.path is not None:
        check_place(found.path, name="the calibration")
    try:
        with listening_to_calibration(voice) as progress:
            estimates = estimate_shapes(
                invocation.task(),
                shapes,
                seed=invocation.settings.calibrate.seed,
                batches=batches_by(calibration.size_rule),
                progress=progress,
                memory_limit_bytes=invocation.settings.calibrate.memory_limit,
                deadline=Deadline(invocation.settings.calibrate.time_limit, began_s),
            )
        calibration = calibration.model_copy(update={"shapes": estimates})
        if found.path is not None:
            save(calibration, found.path, key=find_or_make_trust(os.environ, require_signature=False).key)
    except BatchcalError as error:
        return replace(found, calibration=calibration, stopped=error)
    voice.say("batchcal plan --shapes predicts what they would train with")
    return replace(found, calibration=calibration)
