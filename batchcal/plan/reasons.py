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
        "accumulation_steps": f"the fewest for {count_of(per_rank, 'sample')}" + (" on each rank" if plan.world_size > 1 else ""),
        "micro_batches": "the sum is exact, and the sizes are as equal as possible, for the lowest peak memory",
        "eval_batch": (
            "half of the size whose rehearsal failed"
            if plan.eval_batch < (finding.eval or finding.train).batch
            else "the largest size that was run without gradients"
            if finding.eval
            else "evaluation was not measured: the same size as in training"
        ),
        "pin_memory": (
            "copies to the GPU overlap with computation" if plan.pin_memory else f"{plan.device} does not use pinned memory"
        ),
        "persistent_workers": "the workers stay alive between epochs" if plan.num_workers else "there are no workers",
        "intra_op_threads": (
            f"the number of physical cores, within the CPU time of {cores} cores"
            if calibration.finals_of(finding) is None
            else "the fastest number in the race, the smallest if several are equally fast"
        ),
        "interop_threads": (
            "with so few threads, one operator at a time is fastest"
            if threads <= 2
            else "a second thread runs independent operators in parallel"
        ),
        "allocator": "measured with this policy",
        "predicted_peak_bytes": (
            "measured in the rehearsal, including evaluations"
            if plan.status == "verified"
            else f"an evaluation batch of {plan.eval_batch} needs this much"
            if finding.eval and finding.eval.peak_bytes == plan.predicted_peak_bytes
            else "the memory model's prediction for this size, or a measured peak if that is larger"
        ),
        "budget_bytes": (
            f"the limit of {format_bytes(budget.limit_bytes)} ({budget.learned_from}), minus other processes and the margin"
        ),
        "predicted_samples_per_s": (
            "no step was timed near this size"
            if plan.predicted_samples_per_s is None
            else ("measured in the rehearsal" if plan.status == "verified" else "from measured step times")
            + (", per rank" if plan.world_size > 1 else "")
        ),
        "world_size": "as requested",
        "objective": (
            "the largest micro-batch that fits" if plan.objective == "memory" else "the micro-batch that trained fastest"
        ),
        "limited_by": (
            f"the complete {'share of a rank' if plan.world_size > 1 else 'effective batch'} is one micro-batch"
            if plan.limited_by == "effective-batch"
            else "larger micro-batches would not train faster"
            if plan.limited_by == "speed"
            else f"this limits the capacity to {capacity.batch}"
        ),
    }


def _status(plan: Plan, rehearsal: Rehearsal | None) -> str:
    if plan.status == "predicted":
        return "the memory and the speed of the task are assumed; nothing was run"
    if plan.world_size > 1:
        return "the calibration did not run several processes together"
    if rehearsal is None:
        return f"this plan was not rehearsed; batchcal calibrate --effective-batch {plan.effective_batch} rehearses it"
    if not rehearsal.fits:
        return f"its rehearsal failed: {rehearsal.outcome.kind}"
    run, steps = rehearsal.micro_batches_run, plan.accumulation_steps
    part = f" with {run} of {steps} micro-batches per step" if run < steps else ""
    return f"this exact plan was rehearsed{part}: its peak is within the budget"
