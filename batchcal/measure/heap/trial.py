"""A training with random batches: the request and the report."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from batchcal.core.values import Frozen

MOST_S: Final = 8.0
SHARE_OF_TIME: Final = 0.3
LEAST_S: Final = 0.5
"""Seconds of a trial, of the time that is left at most, and at least. In the zoo 128 steps took 2 to 12 s."""
SHARE_OF_ANSWER: Final = 1 / 3
"""Batch of a trial: the growth, by up to a factor of 2.4, does not end it, and there is time for more steps. Much smaller blocks
say little about large ones: texts in convolutions grew by 2.2 to 2.3 at 7, 8, 13 and 20 a batch, by 1.4 to 1.8 at 4, and by 1.1
at 3."""


class HeapReading(Frozen):
    """The peak of a process after its first steps."""

    steps: Annotated[int, Field(ge=1)]
    peak_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    """Anonymous and shared."""


class HeapRequest(Frozen):
    """Steps to run over batches of changing shapes."""

    device: str
    allocator: str
    batch: int
    allowed_bytes: int
    """Demand at which the fence is armed."""
    limit_s: float
    """For the steps."""


class HeapReport(Frozen):
    """What was measured. Where memory ended the child, the last reading is what it was allowed to hold."""

    readings: tuple[HeapReading, ...]
    """By rising number of steps."""
    why_ended: str = ""
    """How the child ended, where it did not end by itself."""


def seconds_for(left_s: float) -> float:
    """Seconds for the steps of a trial, of `left_s` that are left. 0: too few are left."""
    limit_s = min(MOST_S, left_s * SHARE_OF_TIME)
    return limit_s if limit_s >= LEAST_S else 0.0
