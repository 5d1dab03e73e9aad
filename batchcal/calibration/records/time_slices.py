"""Duration of each part of a calibration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.core.values import Record

TimedPart = Literal[
    "examination",
    "worker-trial",
    "policies",
    "train-capacity",
    "eval-capacity",
    "heap-growth",
    "micro-batches",
    "threads-and-workers",
    "rehearsal",
    "attribution",
]
"""`policies`, `micro-batches` and `threads-and-workers` are the races of these."""


class TimeSlice(Record):
    """Duration of one part, without the parts nested in it."""

    part: str
    """A `TimedPart`, or one of a later version."""
    wall_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
