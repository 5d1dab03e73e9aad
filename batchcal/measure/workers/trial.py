"""A trial of DataLoader workers: the request and the report."""

from __future__ import annotations

from typing import Final, Literal

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.core.values import Frozen

ENDS_S: Final = 5.0
MOST_TRIED: Final = 2
READ_S: Final = (0.3, 1.2)
SHARE_OF_READING: Final = 0.06
HANG_S: Final = (3.0, 8.0)
FRESH_WORKER_S: Final = 3.0
"""Seconds for the start of a worker that is not forked. It imports torch first: 1 to 3 s on two loaded cores."""
MOST_FRESH_WORKER_S: Final = 15.0
"""The same with the user's module, whose import may take longer than that of torch."""
SHARE_OF_HANG: Final = 0.2
"""Share of the remaining time to wait for workers that deliver nothing."""


class WorkersRequest(Frozen):
    """Workers to try."""

    device: str
    allocator: str
    workers: int
    read_s: float
    """Seconds of reading, for the workers and for the process each."""
    hang_s: float
    """Seconds after which workers that deliver nothing are considered hung."""

    @property
    def limit_s(self) -> float:
        """Limit of the trial after the task is loaded, seconds: the readings, a hang, and the start and end of processes."""
        return self.hang_s + 3 * self.read_s + ENDS_S


def trial_of(device: str, allocator: str, *, requested: int | None, left_s: float) -> WorkersRequest:
    """Return the trial of a calibration with `left_s` seconds left. Two workers share resources that a single one does not."""
    return WorkersRequest(
        device=device,
        allocator=allocator,
        workers=min(requested or MOST_TRIED, MOST_TRIED),
        read_s=min(READ_S[1], max(READ_S[0], left_s * SHARE_OF_READING)),
        hang_s=min(HANG_S[1], max(HANG_S[0], left_s * SHARE_OF_HANG)),
    )


class WorkersReport(Frozen):
    """Result of a trial of workers."""

    check: PromiseCheck
    workers: LoaderWorkers
    ended_by: Literal["", "time-limit", "memory"] = ""
    """The limit that ended the trial."""
