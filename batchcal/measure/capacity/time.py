"""Time that the searches of a calibration have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchcal.core.clock import Clock

FOR_AN_ANSWER_S: Final = 5.0
"""Time that the first probe, or the trials before it, can count on before the end of the time limit, however little is left."""


@dataclass
class SearchTime:
    """Remaining time of the searches, a share of the time limit."""

    clock: Clock
    until: float
    """Clock time after which no further child starts."""
    ends: float
    """Clock time at which the complete time limit has passed."""

    def left_s(self, *, has_answer: bool = True) -> float:
        """Seconds until no further child starts. Without an answer there is always time for one probe within the time limit."""
        now = self.clock.monotonic()
        left_s = self.until - now
        return left_s if has_answer or now >= self.ends else max(left_s, FOR_AN_ANSWER_S)

    def end_of_trials(self, *, has_answer: bool) -> float:
        """Clock time after which no further trial of a size starts."""
        return self.until if has_answer else max(self.until, min(self.clock.monotonic() + FOR_AN_ANSWER_S, self.ends))

    def shorten(self, share: float) -> None:
        """Leave this share of the remaining time."""
        self.until = self.clock.monotonic() + self.left_s() * share
