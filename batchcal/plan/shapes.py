"""What shapes that were never run would train with: predictions from the memory model, never more than that."""

from __future__ import annotations

from typing import Literal

from batchcal.calibration.memory_model import UNBOUNDED, MemoryModel
from batchcal.calibration.schema import Calibration, Finding
from batchcal.calibration.shape import Scalar, ShapeEstimate
from batchcal.core.errors import NoCalibration
from batchcal.core.values import Record
from batchcal.plan.make import find
from batchcal.plan.split import split


class ShapePrediction(Record):
    """One shape. Nothing of it was run, but for the first, which is the task itself and was measured besides."""

    status: Literal["predicted"] = "predicted"
    arguments: dict[str, Scalar]
    parameters: int
    at_rest_bytes: int
    """Parameters, optimizer, and what every process with torch holds."""
    traced: bool
    """False: nothing is known of its steps, as `why` says."""
    micro_batch: int
    """The largest predicted to fit, of at most the effective batch. 0: not even one sample."""
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
    """A prediction for each shape that was asked about, the task's own first.

    What the task's own process held at rest beyond its parameters, gradients and optimizer is there for every shape; what a step
    takes on paper is multiplied by what the task's own steps were seen to take.

    Raises:
        NoCalibration: no shape was asked about, or nothing was verified on this device under this allocator.
    """
    if not calibration.shapes:
        raise NoCalibration("no shape was asked about", try_="batchcal calibrate TARGET --shape d_model=1024,n_layers=256")
    finding = find(calibration, device=device, allocator=allocator)
    budget = calibration.budget(finding.device)
    budget_bytes = 0 if budget is None else budget.budget_bytes
    own = next((shape for shape in calibration.shapes if not shape.arguments), None)
    # At rest was measured over a tiny step, whose gradients were there.
    held = 0 if own is None else own.static_bytes + own.gradient_bytes
    beside = max(0.0, finding.train_memory.base_bytes - held)
    wished = effective_batch or calibration.effective_batch or finding.train.batch
    return tuple(_predict(shape, finding, beside, budget_bytes, wished) for shape in calibration.shapes)


def _predict(shape: ShapeEstimate, finding: Finding, beside: float, budget_bytes: int, wished: int) -> ShapePrediction:
    rest = beside + shape.static_bytes
    empty = ShapePrediction(
        arguments=shape.arguments,
        parameters=shape.parameters,
        at_rest_bytes=round(rest),
        traced=bool(shape.points),
        micro_batch=0,
        accumulation_steps=0,
        effective_batch=wished,
        predicted_peak_bytes=None,
        budget_bytes=budget_bytes,
        why=shape.why,
    )
    if not shape.points:
        return empty
    model = MemoryModel(base_bytes=rest, ratio=finding.train_memory.ratio, shape=shape.points, source="fake-tensor")
    largest = model.largest_within(budget_bytes, ceiling=min(wished, UNBOUNDED))
    if largest < 1:
        return empty.model_copy(update={"why": "not even one sample is predicted to fit"})
    sizes = split(wished, largest)
    return empty.model_copy(
        update={
            "micro_batch": sizes[0],
            "accumulation_steps": len(sizes),
            "predicted_peak_bytes": round(model.predict(sizes[0])),
        }
    )
