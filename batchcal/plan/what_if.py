"""What other container sizes would give: predictions from the memory model, never more than that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from batchcal.calibration.memory_model import MemoryModel
from batchcal.calibration.schema import Calibration, Capacity, LimitedBy
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.core.units import format_bytes
from batchcal.core.values import Record
from batchcal.plan.effective_batch import effective_batch_of
from batchcal.plan.make import find
from batchcal.plan.rehearsed import share_left

UNMOVED: Final[tuple[LimitedBy, ...]] = ("dataset", "max-batch", "model")
"""What limits a capacity whatever the memory."""
FURTHEST: Final = 2**20
"""No prediction goes beyond this size; a model that memory does not limit there is not limited by memory."""
WHOLE_MACHINE: Final = frozenset({"/proc/meminfo MemTotal", "psutil", "sysconf"})
"""Where a limit is learned that no container set."""


class Prediction(Record):
    """What a limit of `limit_bytes` would give. Nothing of it was run."""

    status: Literal["predicted"] = "predicted"
    limit_bytes: int
    budget_bytes: int
    """Of that limit, with the same margin and the same others. Not positive: they alone fill it."""
    micro_batch: int
    """The largest predicted to fit. 0: not even one sample."""
    eval_batch: int
    """Likewise without gradients. 0: not even one sample, or not measured."""
    effective_batch: int
    """As asked, else the predicted micro-batch."""
    accumulation_steps: int
    """0: nothing fits."""
    predicted_peak_bytes: int | None
    """None: nothing fits."""
    relative_error: float | None
    """How far the memory model was off at the sizes that were run: its residual or the allocator's own spread, the larger."""
    limited_by: str
    why: str


def what_if(
    calibration: Calibration,
    limits_bytes: Iterable[int],
    *,
    effective_batch: int | None = None,
    device: str | None = None,
    allocator: str | None = None,
) -> tuple[Prediction, ...]:
    """One prediction for each limit, in the order given.

    Raises:
        UsageError: a limit or an effective batch that is not positive.
        NoCalibration: nothing was verified on this device under this allocator.
    """
    finding = find(calibration, device=device, allocator=allocator)
    budget = calibration.budget(finding.device)
    if budget is None:
        raise NoCalibration(f"the calibration holds no budget for {finding.device}", try_="batchcal calibrate --force")
    given = effective_batch_of(calibration, effective_batch)
    if given is not None and given.samples < 1:
        raise UsageError(f"effective batch {given.samples} is below 1", try_=f"--effective-batch {finding.train.batch}")
    margin = budget.margin_bytes / budget.limit_bytes
    # What else runs in this container would run in another; the neighbours of a whole machine would not move in.
    others = 0 if budget.learned_from in WHOLE_MACHINE else budget.others_bytes
    errors = [error for error in (finding.train_memory.relative_error, finding.train_memory.spread) if error]
    predictions = []
    for limit in limits_bytes:
        if limit < 1:
            raise UsageError(f"container size {limit} is not positive", try_="--what-if 2GiB,4GiB")
        there = int(limit * (1 - margin)) - others - budget.reserved_bytes
        usable = finding.usable_bytes(there)
        micro = _largest(calibration, finding.train, finding.train_memory, usable, share=share_left(calibration, finding))
        evaluating = finding.eval and _largest(calibration, finding.eval, finding.eval_memory or finding.train_memory, usable)
        wished = micro if given is None else given.samples
        predictions.append(
            Prediction(
                limit_bytes=limit,
                budget_bytes=there,
                micro_batch=micro,
                eval_batch=evaluating or 0,
                effective_batch=wished,
                accumulation_steps=-(-wished // micro) if micro else 0,
                predicted_peak_bytes=round(finding.train_memory.predict(micro)) if micro else None,
                relative_error=max(errors, default=None),
                limited_by=_limited_by(finding.train, micro),
                why=_why(finding.train_memory, micro, usable),
            )
        )
    return tuple(predictions)


def _largest(calibration: Calibration, capacity: Capacity, model: MemoryModel, budget_bytes: int, *, share: float = 1.0) -> int:
    """`share`: what failed rehearsals leave of the model's sizes."""
    ceiling = capacity.batch if capacity.limited_by in UNMOVED else _ceiling(calibration)
    micro = int(model.largest_within(budget_bytes, ceiling=ceiling if share == 1 else FURTHEST) * share)
    micro = min(micro, ceiling)
    if budget_bytes >= capacity.peak_bytes:
        # It was run, so the model's error does not take it away.
        micro = max(micro, capacity.batch)
    multiple = calibration.obeyed.multiple_of
    return micro // multiple * multiple


def _ceiling(calibration: Calibration) -> int:
    samples = None if calibration.facts is None else calibration.facts.train_samples
    return min(bound for bound in (samples, calibration.options.max_batch, FURTHEST) if bound)


def _limited_by(capacity: Capacity, micro: int) -> str:
    return capacity.limited_by if micro == capacity.batch and capacity.limited_by in UNMOVED else "memory"


def _why(model: MemoryModel, micro: int, budget_bytes: int) -> str:
    if micro:
        return f"{format_bytes(model.predict(micro))} predicted within {format_bytes(budget_bytes)}"
    one = format_bytes(model.predict(1))
    return f"one sample needs {one} and {format_bytes(max(budget_bytes, 0))} would be left"
