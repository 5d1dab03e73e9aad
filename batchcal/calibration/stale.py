"""Reasons why a calibration is not used: a closed set."""

from __future__ import annotations

from typing import Literal

from batchcal.core.values import Frozen

StaleReason = Literal[
    "expired",
    "future-dated",
    "other-cpu",
    "other-memory",
    "other-os",
    "other-python",
    "other-torch",
    "other-accelerator",
    "other-allocator",
    "other-task",
    "other-options",
    "malformed",
    "newer-format",
    "not-ours",
    "bad-digest",
    "bad-signature",
    "unsigned",
]


class Stale(Frozen):
    """A calibration that must not be used: the reason for programs, and the detail for people with the old and the new value."""

    reason: StaleReason
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
