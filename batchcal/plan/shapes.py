"""Predictions for shapes that were never run, from the memory model only."""

from __future__ import annotations

from shlex import quote
from typing import Literal

from batchcal.calibration.records.memory_model import UNBOUNDED, MemoryModel
from batchcal.calibration.records.shape import Scalar, ShapeEstimate
from batchcal.calibration.schema import Calibration, Finding, usable_bytes
from batchcal.core.errors import NoCalibration
from batchcal.core.values import Record
from batchcal.plan.division.micro_batches import divide
from batchcal.plan.division.rules import DivisionRefused, division_of
from batchcal.plan.effective_batch import effective_batch_of
from batchcal.plan.make import find
from batchcal.plan.rehearsals.rehearsed import remaining_share


class ShapePrediction(Record):
    """Prediction for one shape. None of it was run, except for the first shape: the task itself, which was also measured."""

    status: Literal["predicted"] = "predicted"
    arguments: dict[str, Scalar]
    parameters: int
    at_rest_bytes: int
    """Memory of the parameters, of the optimizer and of a process with torch itself."""
    traced: bool
    """False: its steps are unknown, as `why` explains."""
    micro_batch: int
    """The largest micro-batch that is predicted to fit, at most the effective batch. 0: not even one sample fits."""
    accumulation_steps: int
    """0: nothing fits."""
    effective_batch: int
    predicted_peak_bytes: int | None
    """None: nothing fits."""
    budget_bytes: int
    why: str = ""


def predict_shapes(
    calibration: Calibration,
    *,
    effective_batch: int | None = None,
    device: str | None = None,
    allocator: str | None = None,
) -> tuple[ShapePrediction, ...]:
    """Return a prediction for each requested shape, the task's own first.

    The task's own process holds memory at rest beyond its parameters, gradients and optimizer. The same is assumed for every
    shape. The calculated memory of a step is multiplied by the ratio that was measured for the task's own steps.

    Raises:
        NoCalibration: no shape was requested, or nothing was verified on this device under this allocator.
    """
    if not calibration.shapes:
        raise NoCalibration(
            "the calibration has no predictions for shapes",
            known="a shape is a set of values for arguments of the task function; batchcal calibrate --shape sets it",
            try_=f"batchcal calibrate {quote(calibration.task.spec)} --shape NAME=VALUE    NAME is an argument of the task",
        )
    finding = find(calibration, device=device, allocator=allocator)
    own = next((shape for shape in calibration.shapes if not shape.arguments), None)
    # Memory at rest was measured over a tiny step, with its gradients in memory.
    own_bytes = 0 if own is None else own.static_bytes + own.gradient_bytes
    process_bytes = max(0.0, finding.train_memory.base_bytes - own_bytes)
    setting = effective_batch_of(calibration, effective_batch)
    samples = finding.train.batch if setting is None else setting.samples
    return tuple(
        _predict(calibration, shape, finding, process_bytes=process_bytes, samples=samples) for shape in calibration.shapes
    )


def _predict(
    calibration: Calibration,
    shape: ShapeEstimate,
    finding: Finding,
    *,
    process_bytes: float,
    samples: int,
) -> ShapePrediction:
    """`process_bytes`: bytes at rest beyond parameters, gradients and optimizer."""
    budget = calibration.budget(finding.device)
    budget_bytes = 0 if budget is None else budget.budget_bytes
    rest = process_bytes + shape.static_bytes
    empty = ShapePrediction(
        arguments=shape.arguments,
        parameters=shape.parameters,
        at_rest_bytes=round(rest),
        traced=bool(shape.points),
        micro_batch=0,
        accumulation_steps=0,
        effective_batch=samples,
        predicted_peak_bytes=None,
        budget_bytes=budget_bytes,
        why=shape.why,
    )
    if not shape.points:
        return empty
    model = MemoryModel(base_bytes=rest, ratio=finding.train_memory.ratio, shape=shape.points, source="fake-tensor")
    usable = usable_bytes(budget_bytes, rest, finding.heap_growth)
    largest = min(samples, int(model.largest_within(usable, ceiling=UNBOUNDED) * remaining_share(calibration, finding)))
    if largest < 1:
        return empty.model_copy(update={"why": "the prediction is that not even one sample fits"})
    try:
        sizes, _ = divide(calibration, division_of(calibration, samples), samples, largest, largest)
    except DivisionRefused as error:
        return empty.model_copy(update={"why": error.what})
    return empty.model_copy(
        update={
            "micro_batch": sizes[0],
            "accumulation_steps": len(sizes),
            "predicted_peak_bytes": round(model.predict(sizes[0])),
        }
    )
