"""The limits of a last, smaller group that only training knows: of an epoch that is resumed with another effective batch."""

from __future__ import annotations

from batchcal.core.values import Record


class GroupLimits(Record):
    """What the micro-batches of a smaller group obey, beside the task's size rule and `Plan.undivided`."""

    least: int = 1
    """Samples of the smallest micro-batch of a divided group."""
    most: int | None = None
    """The largest micro-batch that fits. None: that of the plan."""
    multiple_of: int = 1
    single_sample_error: str = ""
    """How the task fails with a micro-batch of one sample. Empty: it does not, as far as it is known."""
