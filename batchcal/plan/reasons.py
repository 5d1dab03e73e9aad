"""Reasons for the values of a plan, as far as they follow from the value itself and the calibration."""

from __future__ import annotations

from batchcal.calibration.records.rehearsal import Rehearsal
from batchcal.calibration.schema import Budget, Calibration, Finding
from batchcal.core.units import count_of, format_bytes
from batchcal.plan.plan import Plan


def reasons(
    plan: Plan, calibration: Calibration, finding: Finding, budget: Budget, rehearsal: Rehearsal | None
) -> dict[str, str]:
    """Return a sentence for each value that does not depend on the request. The code that chooses a value adds the others."""
    capacity, threads = finding.train, plan.intra_op_threads
    per_rank = sum(plan.micro_batches)
    cores = f"{calibration.environment.cpu.cores.value:g}"
    return {
        "status": _status(plan, rehearsal),
        "accumulation_steps": f"the fewest for {count_of(per_rank, 'sample')}" + (" of each rank" if plan.world_size > 1 else ""),
        "micro_batches": "the sum is exact and the sizes are as even as can be, for the lowest peak",
        "eval_batch": (
            "half of one that a rehearsal did not survive"
            if plan.eval_batch < (finding.eval or finding.train).batch
            else "the largest that was run without gradients"
            if finding.eval
            else "evaluation was not measured: as for training"
        ),
        "pin_memory": (
            "copies to the GPU overlap with computing" if plan.pin_memory else f"{plan.device} copies nothing from pinned memory"
        ),
        "persistent_workers": "workers are kept over epochs" if plan.num_workers else "there are no workers",
        "intra_op_threads": (
            f"physical cores within {cores} cores' worth of time"
            if calibration.finals_of(finding) is None
            else "the fewest of those that are as fast as any, raced"
        ),
        "interop_threads": (
            "so few cores are best used within one operator" if threads <= 2 else "a second one for operators side by side"
        ),
        "allocator": "measured under this policy",
        "predicted_peak_bytes": (
            "what the rehearsal held, evaluations included"
            if plan.status == "verified"
            else f"evaluating {plan.eval_batch} at once needs it"
            if finding.eval and finding.eval.peak_bytes == plan.predicted_peak_bytes
            else "the memory model at this size, and at least what was measured up to it"
        ),
        "budget_bytes": f"{format_bytes(budget.limit_bytes)} by {budget.learned_from}, less others and margin",
        "predicted_samples_per_s": (
            "no step was timed around this size"
            if plan.predicted_samples_per_s is None
            else ("rehearsed" if plan.status == "verified" else "from measured step times")
            + (", per rank" if plan.world_size > 1 else "")
        ),
        "world_size": "as asked",
        "objective": (
            "the largest micro-batch that fits" if plan.objective == "memory" else "the micro-batch that trained fastest"
        ),
        "limited_by": (
            "no more was asked for"
            if plan.limited_by == "effective-batch"
            else "larger ones train slower"
            if plan.limited_by == "speed"
            else f"why the capacity is {capacity.batch} and no more"
        ),
    }


def _status(plan: Plan, rehearsal: Rehearsal | None) -> str:
    if plan.status == "predicted":
        return "the memory and the speed of the task are assumed; nothing was run"
    if plan.world_size > 1:
        return "several processes were not run together"
    if rehearsal is None:
        return f"this plan was not run whole; batchcal calibrate --effective-batch {plan.effective_batch} does that"
    if not rehearsal.fits:
        return f"its rehearsal failed: {rehearsal.outcome.kind}"
    run, steps = rehearsal.micro_batches_run, plan.accumulation_steps
    part = f", {run} of {steps} micro-batches a step" if run < steps else ""
    return f"this very plan was run whole{part}: peak within the budget"
