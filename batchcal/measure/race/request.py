"""What travels to a child that is timed, as JSON."""

from __future__ import annotations

from batchcal.core.values import Frozen
from batchcal.measure.request import Setting


class LapArguments(Frozen):
    setting: Setting
    micro_batches: tuple[int, ...]
    """See `LapRequest`."""
    threads: tuple[int, ...]
    least_s: float
    """Every size is timed for so long at least, and for two steps."""
    until_s: float
    """Of the monotonic clock, which all processes share: no further size is begun."""
    order: tuple[int, ...] | None
