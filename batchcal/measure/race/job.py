"""Arguments and function of the child that times micro-batches. Torch is imported only when a function is called."""

from __future__ import annotations

from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.job import Setting


class LapArguments(Frozen):
    setting: Setting
    micro_batches: tuple[int, ...]
    """See `LapRequest`."""
    threads: tuple[int, ...]
    rounds: int
    """See `LapRequest`."""
    samples: int | None
    """That every size is timed over, at least, and for two steps. None: as many as the first does in `least_s`."""
    least_s: float
    limit_s: float
    """No further size is begun so many seconds after the warm-up; the first is timed in any case."""
    accelerator_allowed_bytes: int | None
    order: tuple[int, ...] | None


def lap(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Times of several batch sizes, in turn."""
    from batchcal.measure.race.lap import lap

    return lap(LapArguments.model_validate(arguments), context)
