"""A training with random batches: the request and the report."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from batchcal.core.values import Frozen

MOST_S: Final = 8.0
SHARE_OF_TIME: Final = 0.3
LEAST_S: Final = 0.5
"""Limits of a trial: most seconds, most of the remaining time, least seconds. In the zoo, 128 steps took 2 to 12 s."""
SHARE_OF_ANSWER: Final = 1 / 3
"""Batch of a trial, as a share of the batch that was found. Growth by a factor of up to 2.4 does not end the trial, and there is
time for more steps. Much smaller blocks do not represent large ones: texts in convolutions grew by 2.2 to 2.3 at 7, 8, 13 and 20
per batch, by 1.4 to 1.8 at 4, and by 1.1 at 3."""


class HeapReading(Frozen):
    """The peak of a process after its first steps."""

    steps: Annotated[int, Field(ge=1)]
    peak_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    """Anonymous and shared memory."""


class HeapRequest(Frozen):
    """Steps to run over batches of changing shapes."""

    device: str
    allocator: str
    batch: int
    allowed_bytes: int
    """Memory at which the fence stops the child, bytes."""
    limit_s: float
    """Limit for the steps, seconds."""


class HeapReport(Frozen):
    """Result of the measurement. If memory ended the child, the last reading is the memory that it was allowed to hold."""

    readings: tuple[HeapReading, ...]
    """By increasing number of steps."""
    why_ended: str = ""
    """Description of the end, if the child did not end by itself."""


def seconds_for(left_s: float) -> float:
    """Return the seconds for the steps of a trial if `left_s` seconds are left. 0: too few are left."""
    limit_s = min(MOST_S, left_s * SHARE_OF_TIME)
    return limit_s if limit_s >= LEAST_S else 0.0
