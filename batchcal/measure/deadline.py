"""The time limit of a command as a deadline for every child that it starts."""

from __future__ import annotations

import time
from typing import Final

OVERRUN: Final = 1.25
"""A command ends within this many time limits and 3 s: a child that started in time may finish."""
GRACE_S: Final = 0.5
"""Part of these 3 s for children. The start of Python and the detection of the machine took 0.7 to 1.2 s on two busy cores, the
end of a child and saving the file took 0.5 s."""


class Deadline:
    """Deadline of a command with a time limit of `limit_s` seconds from `start_s` of `time.monotonic` (default: now)."""

    def __init__(self, limit_s: float, start_s: float | None = None) -> None:
        self.limit_s = limit_s
        self._end_s = (time.monotonic() if start_s is None else start_s) + limit_s * OVERRUN + GRACE_S

    @property
    def name(self) -> str:
        return time_limit_name(self.limit_s)

    def left_s(self) -> float:
        """Seconds that a child may still run, 0 if none are left."""
        return max(0.0, self._end_s - time.monotonic())


def time_limit_name(limit_s: float) -> str:
    """The limit as the user gave it: `the time limit of 20 s (--time-limit)`."""
    return f"the time limit of {limit_s:g} s (--time-limit)"
