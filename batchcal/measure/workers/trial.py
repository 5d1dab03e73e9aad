"""A trial of DataLoader workers: the request and the report."""

from __future__ import annotations

from typing import Final, Literal

from batchcal.calibration.promises import PromiseCheck
from batchcal.calibration.workers import LoaderWorkers
from batchcal.core.values import Frozen

ENDS_S: Final = 5.0
MOST_TRIED: Final = 2
READ_S: Final = (0.3, 1.2)
SHARE_OF_READING: Final = 0.06
HANG_S: Final = (3.0, 8.0)
FRESH_WORKER_S: Final = 3.0
"""A worker that is not forked imports torch first: 1 to 3 s on two loaded cores."""
MOST_FRESH_WORKER_S: Final = 15.0
"""With the user's module, whose import may take longer than torch's."""
SHARE_OF_HANG: Final = 0.2
"""Of the time left, for workers that bring nothing."""


class WorkersRequest(Frozen):
    """Workers to try."""

    device: str
    allocator: str
    workers: int
    read_s: float
    """Seconds of reading, for the workers and for the process each."""
    hang_s: float
    """Workers that bring nothing for so long hang."""

    @property
    def limit_s(self) -> float:
        """For all of it, once the task is loaded: the readings, a hang, and what starting and ending processes takes."""
        return self.hang_s + 3 * self.read_s + ENDS_S


def trial_of(device: str, allocator: str, *, asked: int | None, left_s: float) -> WorkersRequest:
    """The trial for a calibration that has `left_s` seconds left: two workers, which share what one alone does not."""
    return WorkersRequest(
        device=device,
        allocator=allocator,
        workers=min(asked or MOST_TRIED, MOST_TRIED),
        read_s=min(READ_S[1], max(READ_S[0], left_s * SHARE_OF_READING)),
        hang_s=min(HANG_S[1], max(HANG_S[0], left_s * SHARE_OF_HANG)),
    )


class WorkersReport(Frozen):
    """What is known of workers after the trial."""

    check: PromiseCheck
    workers: LoaderWorkers
    ended_by: Literal["", "time-limit", "memory"] = ""
    """The limit that ended the trial."""
