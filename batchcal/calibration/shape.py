"""Model shapes that nobody measured: what each needs on paper, from its step run without memory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from batchcal.calibration.memory_model import ShapePoint
from batchcal.core.values import Record

Scalar = str | int | float | bool | None
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]


class ShapeEstimate(Record):
    """A task with other arguments."""

    arguments: dict[str, Scalar]
    """Those that were asked for, over the task's own. Empty: the task as it was calibrated, to hold the others against."""
    parameters: int
    static_bytes: Bytes
    """Parameters and what the optimizer keeps."""
    gradient_bytes: Bytes
    """Part of what a step takes: they come and go with it."""
    points: tuple[ShapePoint, ...]
    """What a training step takes beyond the static bytes, by rising micro-batch. Empty: it could not be traced, as `why` says."""
    why: str = ""
