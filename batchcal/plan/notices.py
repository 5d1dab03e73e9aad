"""Notices of a plan: facts that its values do not show."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.schema import OFF, Budget, Calibration, Finding
from batchcal.core.units import count_of, format_bytes
from batchcal.plan.division import size_rule
from batchcal.plan.effective_batch import EffectiveBatch
from batchcal.values.settings import Objective

_UNCERTAIN: Final = {
    "partial-scan": "only a part of the samples was compared",
    "first-samples": "the data is a stream, of which only the first samples were read",
    "unknown": "the samples do not show their size",
}
"""Reason why the largest sample is uncertain, by `TaskFacts.worst_case`."""


def effective_batch_notices(
    setting: EffectiveBatch | None, samples: int, objective: Objective, world_size: int
) -> tuple[str, ...]:
    """Return a notice if the user did not set the effective batch of the plan."""
    if setting is not None and setting.by_user:
        return ()
    micro = "the largest micro-batch" if objective == "memory" else "the fastest micro-batch"
    basis = f"{micro}{' on each rank' if world_size > 1 else ''}" if setting is None else f"{samples}, like the calibration"
    return (
        f"the effective batch is not set: this plan uses {basis}; "
        f"train, exec and load_plan need a value, for example --effective-batch {samples}",
    )


def calibration_notices(calibration: Calibration, finding: Finding, effective_batch: int) -> tuple[str, ...]:
    """Return notices about open points of the calibration, and about the conditions of its measurement."""
    notices = []
    samples = None if calibration.facts is None else calibration.facts.train_samples
    if samples is not None and effective_batch > samples:
        notices.append(
            f"the effective batch is larger than the dataset ({samples} samples): each epoch is one step with all samples"
        )
    facts = calibration.facts
    if facts is not None and not facts.largest_is_known and calibration.command is None:
        notices.append(f"lower confidence: {_UNCERTAIN[facts.worst_case]}, so a larger sample may exist; set Task(size_of=...)")
    rule = size_rule.restricting(calibration)
    if rule is not None and samples is None:
        notices.append(f"the task {rule.text}: samples at the end of a stream that do not fill such a batch are skipped")
    checkpointed = calibration.options.activation_checkpointing
    if checkpointed != OFF:
        notices.append(
            f"measured with activation checkpointing ({checkpointed}): batchcal train turns it on; in your own training loop, "
            f"call GradientCheckpointManager(model, {checkpointed!r}).enable()"
        )
    if calibration.status not in ("complete", "predicted"):
        rest = finding.train.undone or "; ".join(part.text for part in calibration.undone)
        notices.append("the calibration is not complete" + (f": {rest}" if rest else ""))
    return tuple(notices)


def memory_notices(peak: int, budget: Budget, free_bytes_now: int | None) -> tuple[str, ...]:
    """Return a notice if the plan needs more memory than is free at this moment."""
    if free_bytes_now is None or peak <= free_bytes_now:
        return ()
    return (
        f"the plan needs {format_bytes(peak)} at its peak, but only {format_bytes(free_bytes_now)} are free now"
        f" (the budget is {format_bytes(budget.budget_bytes)})",
    )


def growth_notices(calibration: Calibration, num_workers: int) -> tuple[str, ...]:
    """Return a notice if an epoch adds more memory than the budget can keep free."""
    host, facts, requested = calibration.budget("cpu"), calibration.facts, calibration.options.workers or 0
    if host is None or facts is None or host.reserved_bytes or (num_workers and not requested):
        return ()  # workers that were not requested are planned with their growth
    copied_bytes = 0 if calibration.loader_workers is None else calibration.loader_workers.growth_bytes
    growth_bytes = requested * max(copied_bytes, facts.kept_bytes) if requested else facts.kept_bytes
    if not growth_bytes:
        return ()
    if requested:
        return (
            f"{count_of(requested, 'worker')} may grow by {format_bytes(growth_bytes)} by the end of an epoch, "
            "and the budget has no room for this: use fewer workers or a larger container",
        )
    return (
        f"the dataset keeps the samples that it has read: {format_bytes(growth_bytes)} by the end of an epoch, "
        "and the budget has no room for this: limit its cache or use a larger container",
    )
