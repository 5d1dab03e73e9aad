"""Predictions for other container sizes, from the memory model only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.calibration.schema import Calibration, Capacity, LimitedBy
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.core.units import format_bytes
from batchcal.core.values import Record
from batchcal.plan.effective_batch import effective_batch_of
from batchcal.plan.make import find
from batchcal.plan.rehearsals.rehearsed import remaining_share

UNMOVED: Final[tuple[LimitedBy, ...]] = ("dataset", "max-batch", "model")
"""Limits of a capacity that do not depend on memory."""
FURTHEST: Final = 2**20
"""Largest size of a prediction. A model that memory does not limit at this size is not limited by memory."""
WHOLE_MACHINE: Final = frozenset({"/proc/meminfo MemTotal", "psutil", "sysconf"})
"""Sources of a limit that no container set."""


class Prediction(Record):
    """Predicted result of a limit of `limit_bytes`. None of it was run."""

    status: Literal["predicted"] = "predicted"
    limit_bytes: int
    budget_bytes: int
    """Budget under that limit, with the same margin and the same other processes. Not positive: they alone fill the limit."""
    micro_batch: int
    """The largest micro-batch that is predicted to fit. 0: not even one sample fits."""
    eval_batch: int
    """The same without gradients. 0: not even one sample fits, or it was not measured."""
    effective_batch: int
    """The requested one, else the predicted micro-batch."""
    accumulation_steps: int
    """0: nothing fits."""
    predicted_peak_bytes: int | None
    """None: nothing fits."""
    relative_error: float | None
    """Error of the memory model at the sizes that were run: the larger of its residual and the allocator's own spread."""
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
    """Return one prediction for each limit, in the given order.

    Raises:
        UsageError: a limit or the effective batch is not positive.
        NoCalibration: nothing was verified on this device under this allocator.
    """
    finding = find(calibration, device=device, allocator=allocator)
    budget = calibration.budget(finding.device)
    if budget is None:
        raise NoCalibration(f"the calibration has no budget for {finding.device}", try_="batchcal calibrate --force")
    setting = effective_batch_of(calibration, effective_batch)
    if setting is not None and setting.samples < 1:
        raise UsageError(f"effective batch {setting.samples} is below 1", try_=f"--effective-batch {finding.train.batch}")
    margin = budget.margin_bytes / budget.limit_bytes
    # Other processes of this container would run in another one, too. The other processes of a complete machine would not.
    others_bytes = 0 if budget.learned_from in WHOLE_MACHINE else budget.others_bytes
    errors = [error for error in (finding.train_memory.relative_error, finding.train_memory.spread) if error]
    predictions = []
    for limit in limits_bytes:
        if limit < 1:
            raise UsageError(f"container size {limit} is not positive", try_="--what-if 2GiB,4GiB")
        budget_bytes = int(limit * (1 - margin)) - others_bytes - budget.reserved_bytes
        usable = finding.usable_bytes(budget_bytes)
        micro = _largest(
            calibration,
            finding.train,
            finding.train_memory,
            usable,
            useful=finding.train.batch if setting is None else setting.samples,
            share=remaining_share(calibration, finding),
        )
        evaluating = finding.eval and _largest(
            calibration, finding.eval, finding.eval_memory or finding.train_memory, usable, useful=micro
        )
        samples = micro if setting is None else setting.samples
        predictions.append(
            Prediction(
                limit_bytes=limit,
                budget_bytes=budget_bytes,
                micro_batch=micro,
                eval_batch=evaluating or 0,
                effective_batch=samples,
                accumulation_steps=-(-samples // micro) if micro else 0,
                predicted_peak_bytes=round(finding.train_memory.predict(micro)) if micro else None,
                relative_error=max(errors, default=None),
                limited_by=_limited_by(finding.train, micro),
                why=_why(finding.train_memory, micro, usable),
            )
        )
    return tuple(predictions)


def _largest(
    calibration: Calibration, capacity: Capacity, model: MemoryModel, budget_bytes: int, *, useful: int, share: float = 1.0
) -> int:
    """Return the largest batch that is predicted to fit.

    Args:
        useful: largest batch that is of use if larger ones were not searched for speed.
        share: fraction of the model's sizes that failed rehearsals leave.
    """
    ceiling = capacity.batch if capacity.limited_by in UNMOVED else _ceiling(calibration)
    if capacity.limited_by == "speed":
        ceiling = min(ceiling, max(capacity.batch, useful))
    micro = int(model.largest_within(budget_bytes, ceiling=ceiling if share == 1 else FURTHEST) * share)
    micro = min(micro, ceiling)
    if budget_bytes >= capacity.peak_bytes:
        # The capacity was run, so an error of the model must not reduce it.
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
        return f"the predicted peak is {format_bytes(model.predict(micro))}, within the usable {format_bytes(budget_bytes)}"
    need = format_bytes(model.predict(1))
    return f"one sample needs {need}, but only {format_bytes(max(budget_bytes, 0))} would be available"
