"""Limits of a last, smaller group that is unknown before training: an epoch that is resumed with another effective batch."""

from __future__ import annotations

from batchcal.core.values import Record


class GroupLimits(Record):
    """Limits of the micro-batches of a smaller group, in addition to the task's size rule and `Plan.undivided`."""

    least: int = 1
    """Samples of the smallest micro-batch of a divided group."""
    most: int | None = None
    """The largest micro-batch that fits. None: that of the plan."""
    multiple_of: int = 1
    single_sample_error: str = ""
    """Error of the task with a micro-batch of one sample. Empty: none, as far as known."""
