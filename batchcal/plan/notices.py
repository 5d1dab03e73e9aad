"""Notices of a plan: facts that its values do not show."""

from __future__ import annotations

from batchcal.calibration.schema import OFF, Budget, Calibration, Finding
from batchcal.core.units import count_of, format_bytes
from batchcal.plan.division import size_rule
from batchcal.plan.effective_batch import EffectiveBatch
from batchcal.values.settings import Objective


def effective_batch_notices(given: EffectiveBatch | None, samples: int, objective: Objective, world_size: int) -> tuple[str, ...]:
    """Return a notice if the user did not set the effective batch of the plan."""
    if given is not None and given.by_user:
        return ()
    micro = "the largest micro-batch" if objective == "memory" else "the fastest micro-batch"
    made_for = f"{micro}{' on each rank' if world_size > 1 else ''}" if given is None else f"{samples}, as the calibration is"
    return (
        f"the effective batch is not set: this answer is for {made_for}; "
        f"train, exec and load_plan need one, such as --effective-batch {samples}",
    )


def calibration_notices(calibration: Calibration, finding: Finding, wished: int) -> tuple[str, ...]:
    """Return notices about open points of the calibration, and about the conditions of its measurement."""
    notices = []
    samples = None if calibration.facts is None else calibration.facts.train_samples
    if samples is not None and wished > samples:
        notices.append(f"the effective batch is larger than the dataset ({samples} samples): an epoch is one smaller step")
    facts = calibration.facts
    if facts is not None and not facts.largest_is_known:
        notices.append(
            f"lower confidence: the sizes of some samples are unknown ({facts.worst_case.replace('-', ' ')}), "
            "so that a larger one may exist; give Task(size_of=...)"
        )
    rule = size_rule.restricting(calibration)
    if rule is not None and samples is None:
        notices.append(f"the task {rule.text}: samples at the end of a stream that make no such batch are left out")
    checkpointed = calibration.options.activation_checkpointing
    if checkpointed != OFF:
        notices.append(
            f"measured with activation checkpointing ({checkpointed}): train turns it on, a loop of your own does by "
            f"GradientCheckpointManager(model, {checkpointed!r}).enable()"
        )
    if calibration.status not in ("complete", "predicted"):
        rest = finding.train.undone or "; ".join(left.text for left in calibration.undone)
        notices.append("the search ended before it was settled" + (f": {rest}" if rest else ""))
    return tuple(notices)


def memory_notices(peak: int, budget: Budget, free_bytes_now: int | None) -> tuple[str, ...]:
    """Return a notice if the plan needs more memory than is free at this moment."""
    if free_bytes_now is None or peak <= free_bytes_now:
        return ()
    return (
        f"the plan needs {format_bytes(peak)} at its peak and {format_bytes(free_bytes_now)} are free now"
        f" (the budget is {format_bytes(budget.budget_bytes)})",
    )


def growth_notices(calibration: Calibration, num_workers: int) -> tuple[str, ...]:
    """Return a notice if an epoch adds more memory than the budget can keep free."""
    host, facts, asked = calibration.budget("cpu"), calibration.facts, calibration.options.workers or 0
    if host is None or facts is None or host.reserved_bytes or (num_workers and not asked):
        return ()  # workers that were not requested are planned with their growth
    copied = 0 if calibration.loader_workers is None else calibration.loader_workers.growth_bytes
    grown = asked * max(copied, facts.kept_bytes) if asked else facts.kept_bytes
    if not grown:
        return ()
    if asked:
        return (
            f"{count_of(asked, 'worker')} grow by {format_bytes(grown)} by the end of an epoch, for which there is no room: "
            "use fewer workers or a larger container",
        )
    return (
        f"the dataset keeps the samples that it has read, {format_bytes(grown)} by the end of an epoch, for which there is no "
        "room: bound its cache or use a larger container",
    )
