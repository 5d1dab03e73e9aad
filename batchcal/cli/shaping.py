"""`calibrate --shape`: shapes of a model that are asked about, kept with the calibration of the task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from batchcal.cli.calibrating import Found
    from batchcal.cli.desk import Desk
    from batchcal.workload.reference import Scalar


def parsed(texts: Iterable[str]) -> list[dict[str, Scalar]]:
    """The arguments of each shape, as typed.

    Raises:
        UsageError: a part that is not NAME=VALUE.
    """
    from batchcal.workload.reference import parse_arguments

    return [parse_arguments(text, name="shape") for text in texts]


def shaped(desk: Desk, found: Found, shapes: Sequence[dict[str, Scalar]], voice: Voice) -> Found:
    """`found` with what `shapes` need on paper, in place of those that were asked about before; written where it lies. What went
    wrong is its `problem`: a calibration was made, and is to be told."""
    import os

    from batchcal.calibration.keys import find_or_make_trust
    from batchcal.calibration.store import save
    from batchcal.cli.progress import listening
    from batchcal.core import settings as knobs
    from batchcal.core.errors import BatchcalError
    from batchcal.measure.shapes.shapes import estimate_shapes

    calibration = found.calibration
    try:
        with listening(voice, "calibration") as progress:
            estimates = estimate_shapes(desk.task(), shapes, seed=desk.settings.value(knobs.SEED), progress=progress)
        calibration = calibration.model_copy(update={"shapes": estimates})
        if found.path is not None:
            save(calibration, found.path, key=find_or_make_trust(os.environ, require_signature=False).key)
    except BatchcalError as error:
        return replace(found, calibration=calibration, problem=error)
    voice.say("batchcal plan --shapes predicts what they would train with")
    return replace(found, calibration=calibration)
