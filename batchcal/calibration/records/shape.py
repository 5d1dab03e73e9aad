"""Model shapes that were not measured: memory of each on paper, from a step that runs without memory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.core.values import Record

Scalar = str | int | float | bool | None
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]


class ShapeEstimate(Record):
    """Estimate for a task with other arguments."""

    arguments: dict[str, Scalar]
    """Requested arguments, which replace the task's own. Empty: the task as it was calibrated, for comparison."""
    parameters: int
    static_bytes: Bytes
    """Parameters and optimizer state."""
    gradient_bytes: Bytes
    """Part of the memory of a step: gradients exist only during the step."""
    points: tuple[ShapePoint, ...]
    """Memory of a training step beyond the static bytes, by ascending micro-batch. Empty: the trace failed, see `why`."""
    why: str = ""
