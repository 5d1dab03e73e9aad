"""Make a plan from a calibration and a goal: exact settings, each with its reason."""

from __future__ import annotations

from typing import get_args

from batchcal.calibration.records.rehearsal import Rehearsal
from batchcal.calibration.schema import Calibration, Finding, Options
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.guard.outcome import Fits
from batchcal.plan import effective_batch as effective
from batchcal.plan.division import size_rule
from batchcal.plan.division.command_sizes import check_equal, largest_of_command, ranks_of_command
from batchcal.plan.division.last_group import group_limits, last_group_fails, last_group_notice, last_group_of
from batchcal.plan.division.micro_batches import largest_of, limited_by, micro_batches_of
from batchcal.plan.division.rules import DivisionRefused, division_of, has_consent
from batchcal.plan.expectations import eval_peak_bytes, gradient_bytes, host_bytes, measured_bytes, peak_bytes, samples_per_s
from batchcal.plan.notices import calibration_notices, effective_batch_notices, growth_notices, memory_notices
from batchcal.plan.plan import KEYS, Plan
from batchcal.plan.reasons import reasons
from batchcal.plan.rehearsals.rehearsed import is_conclusive, most_evaluated, most_rehearsed, rehearsal_of
from batchcal.plan.workers import choose_workers
from batchcal.values.settings import Objective
from batchcal.workload.spec.reference import calibrate_line


def make_plan(
    calibration: Calibration,
    *,
    effective_batch: int | None = None,
    world_size: int = 1,
    objective: Objective = "throughput",
    device: str | None = None,
    allocator: str | None = None,
    free_bytes_now: int | None = None,
    accept_inexact: bool | None = None,
    min_micro_batch: int | None = None,
) -> Plan:
    """Return the settings for training with `effective_batch` samples per optimizer step.

    Args:
        effective_batch: over all ranks. Default: that of the task, else the one that the calibration was made for, else the
            fastest micro-batch on every rank, with an entry in `notices`.
        world_size: ranks that share the effective batch evenly. Each has its own budget, as large as the measured one.
        objective: `memory` uses the largest and so the fewest micro-batches; `throughput` uses those that trained fastest under
            the policy, if they were timed.
        device: default: the one that the calibration chose.
        allocator: the policy under which the training runs. Default: the calibrated one.
        free_bytes_now: bytes that are usable on the device at this moment. A plan that needs more has an entry in `notices`.
        accept_inexact: divide a batch although its gradient then differs. Default: the option of the calibration.
        min_micro_batch: least micro-batch of a divided batch, in samples. Default: see `division_of`.

    Raises:
        UsageError: the effective batch or the world size is not valid.
        DivisionRefused: the effective batch must not be divided, and does not fit undivided or is shared by ranks; or no sizes
            that the task accepts have that sum.
        NoCalibration: nothing was verified on this device under this allocator, or the largest micro-batch is requested and was
            not measured.
    """
    if objective not in get_args(Objective):
        raise UsageError(f"objective {objective!r} is not valid", try_="--objective throughput, or --objective memory")
    finding = find(calibration, device=device, allocator=allocator)
    budget = calibration.budget(finding.device)
    if budget is None:
        raise NoCalibration(f"the calibration has no budget for {finding.device}", try_="batchcal calibrate --force")
    if objective == "memory" and not finding.train.answers_memory:
        raise NoCalibration(
            "the largest micro-batch was not measured: the calibration was made for throughput",
            known=f"it ended at {finding.train.batch} samples, because larger micro-batches are of no use for speed",
            try_=calibrate_line(calibration.task.spec, "--objective memory"),
        )
    if world_size < 1:
        raise UsageError(f"world size {world_size} is below 1", try_="--world-size 1")
    if calibration.command is not None:
        world_size = ranks_of_command(calibration.command, world_size)
    setting = effective.effective_batch_of(calibration, effective_batch)
    if setting is not None:
        effective.check(setting.samples, finding, world_size)
    per_rank_set = None if setting is None else setting.samples // world_size
    largest = (
        largest_of(calibration, finding, objective, per_rank_set)
        if calibration.command is None
        else largest_of_command(calibration, finding, calibration.command, objective, per_rank_set)
    )
    samples = largest.batch * world_size if setting is None else setting.samples
    per_rank = samples // world_size
    capacity = _capacity(calibration, finding)
    division = division_of(
        calibration, per_rank, world_size=world_size, accept_inexact=accept_inexact, min_micro_batch=min_micro_batch
    )
    chosen = micro_batches_of(calibration, finding, budget, per_rank, largest=largest, division=division, most=capacity)
    if calibration.command is not None:
        check_equal(chosen.sizes, world_size)
    micro, steps = chosen.sizes[0], len(chosen.sizes)
    eval_batch = (finding.eval or finding.train).batch
    most_eval = most_evaluated(calibration, finding)
    if most_eval is not None:
        eval_batch = min(eval_batch, most_eval)
    eval_batch = size_rule.evaluated(calibration.obeyed, eval_batch, micro)
    train_peak = peak_bytes(calibration, finding, micro) + gradient_bytes(calibration, finding, steps)
    peak = max(train_peak, eval_peak_bytes(finding, eval_batch, micro, train_peak))
    rate = samples_per_s(calibration, finding, chosen.sizes)
    workers = choose_workers(
        calibration,
        finding,
        largest_batch=max(micro, eval_batch),
        room_bytes=_host_room(calibration, finding, peak),
        samples_per_s=rate,
    )
    finals = calibration.finals_of(finding)
    threads = calibration.environment.optimal_threads if finals is None else finals.winner.intra_op_threads
    limits = group_limits(calibration, division, capacity)
    last_group, last_group_error = last_group_of(calibration, per_rank, micro, division, limits) if world_size == 1 else ((), "")
    plan = Plan(
        status="predicted" if calibration.status == "predicted" else "derived",
        micro_batch=micro,
        accumulation_steps=steps,
        effective_batch=samples,
        micro_batches=chosen.sizes,
        eval_batch=eval_batch,
        num_workers=workers.count,
        prefetch_factor=workers.prefetch,
        pin_memory=finding.device.startswith("cuda"),
        persistent_workers=workers.count > 0,
        multiprocessing_context=workers.start,
        intra_op_threads=threads,
        interop_threads=1 if threads <= 2 else 2,
        allocator=finding.allocator,
        predicted_peak_bytes=peak,
        budget_bytes=budget.budget_bytes,
        predicted_samples_per_s=rate,
        world_size=world_size,
        objective=objective,
        limited_by=limited_by(finding, largest, chosen.sizes),
        device=finding.device,
        inexact=division.inexact(steps),
        unchecked=bool(division.unchecked) and steps * world_size > 1,
        undivided=division.undivided,
        last_group=last_group,
        last_group_error=last_group_error,
        size_rule=size_rule.restricting(calibration),
        group_limits=limits,
        why={},
        notices=(
            *largest.notices,
            *effective_batch_notices(setting, samples, objective, world_size),
            *chosen.notices,
            *calibration_notices(calibration, finding, samples),
            *((last_group_fails(last_group, last_group_error),) if last_group_error else ()),
            *((below,) if (below := last_group_notice(last_group, division)) and not last_group_error else ()),
            *growth_notices(calibration, workers.count),
            *memory_notices(finding.grown_bytes(peak), budget, free_bytes_now),
        ),
    )
    rehearsal = None if calibration.status == "predicted" else rehearsal_of(calibration, plan)
    if rehearsal is not None:
        plan = _with_last_group(plan, rehearsal)
        plan = _as_rehearsed(plan, rehearsal, measured_bytes(calibration, finding, micro))
    why = reasons(plan, calibration, finding, budget, rehearsal) | {
        "micro_batch": chosen.why + ("" if plan.size_rule is None else f"; the task {plan.size_rule.text}"),
        "effective_batch": "not set: one micro-batch on each rank is used" if setting is None else setting.why,
        "inexact": division.why(steps),
        "num_workers": workers.why,
        "prefetch_factor": workers.why_prefetch,
        "multiprocessing_context": workers.why_start,
        "device": "as requested" if device else "the device that the calibration chose",
    }
    return plan.model_copy(update={"why": {key: why[key] for key in KEYS if key in why}})


def plan_to_show(calibration: Calibration) -> tuple[Plan, str]:
    """Return the plan of the calibration itself. If its effective batch cannot be divided and does not fit, return the plan for
    the largest undivided batch instead, with the reason.

    Raises:
        NoCalibration: nothing was verified.
    """
    try:
        return own_plan(calibration), ""
    except DivisionRefused as refused:
        finding, objective, rule = find(calibration), calibration.options.objective, size_rule.restricting(calibration)
        largest = _capacity(calibration, finding)
        largest = largest if rule is None else rule.at_most(largest) or largest
        ranks = 1 if calibration.command is None else calibration.command.world_size
        return make_plan(calibration, effective_batch=largest * ranks, objective=objective), refused.what


def _capacity(calibration: Calibration, finding: Finding) -> int:
    """The largest micro-batch that fits, according to the rehearsals."""
    return min(finding.train.batch, most_rehearsed(calibration, finding) or finding.train.batch)


def _as_rehearsed(plan: Plan, rehearsal: Rehearsal, measured: int) -> Plan:
    """Return `plan` with values from its rehearsal, not predicted ones. The peak is at least that of the probes of this size."""
    outcome = rehearsal.outcome
    if not isinstance(outcome, Fits):
        return plan
    return plan.model_copy(
        update={
            "status": "verified",
            "predicted_peak_bytes": max(outcome.peak.bytes_on(plan.device), measured),
            "predicted_samples_per_s": outcome.samples_per_s,
        }
    )


def own_plan(calibration: Calibration) -> Plan:
    """Return the plan that `calibration` was made for. The measurements are for this plan, and the views show it."""
    return make_plan(calibration, effective_batch=calibration.effective_batch, objective=calibration.options.objective)


def _with_last_group(plan: Plan, rehearsal: Rehearsal) -> Plan:
    """Return `plan` with the result of its rehearsal for the last, smaller group of an epoch."""
    error = rehearsal.last_group_error
    if not error:
        return plan
    return plan.model_copy(
        update={"last_group_error": error, "notices": (*plan.notices, last_group_fails(plan.last_group, error))}
    )


def answers(calibration: Calibration, objective: Objective) -> bool:
    """True if plans for `objective` can be made from the measurements of `calibration`."""
    return objective != "memory" or all(finding.train.answers_memory for finding in calibration.findings)


def is_rehearsed(calibration: Calibration, options: Options) -> bool:
    """True if the plan that `options` request was run completely, or if they request no plan of their own."""
    if not has_consent(calibration, options) or not answers(calibration, options.objective):
        return False
    effective_batch = options.effective_batch or effective.of_task(calibration)
    if effective_batch is None or calibration.finding() is None:
        return True
    rehearsal = rehearsal_of(calibration, make_plan(calibration, effective_batch=effective_batch, objective=options.objective))
    return rehearsal is not None and is_conclusive(rehearsal.outcome)


def find(calibration: Calibration, *, device: str | None = None, allocator: str | None = None) -> Finding:
    """Return the finding for `device` and `allocator`.

    Raises:
        NoCalibration: there is none. The error lists the existing findings.
    """
    finding = calibration.finding(device=device, allocator=allocator)
    if finding is not None:
        return finding
    target = f"{device or calibration.chosen_device} with allocator {allocator or calibration.policy}"
    verified = ", ".join(f"{other.device} with {other.allocator}" for other in calibration.findings)
    raise NoCalibration(
        f"nothing was verified for {target}",
        known=f"this calibration verified: {verified}" if verified else "the calibration stopped before it verified anything",
        try_=_suggestion(calibration, device or calibration.chosen_device, allocator or calibration.policy),
    )


def _suggestion(calibration: Calibration, device: str, allocator: str) -> str:
    """Suggest the measured settings, and a command that measures the missing ones if the machine has that device."""
    steps = [f"--device {finding.device} --allocator {finding.allocator}" for finding in calibration.findings[:1]]
    if device == "cpu" or any(device.startswith(accelerator.kind) for accelerator in calibration.environment.accelerators):
        steps.append(calibrate_line(calibration.task.spec, f"--force --device {device} --allocator {allocator}"))
    return "\n".join(steps or [calibrate_line(calibration.task.spec, "--force")])


def host_room(calibration: Calibration, plan: Plan) -> int:
    """Bytes of host memory that `plan` leaves for workers beside the training process."""
    finding = find(calibration, device=plan.device, allocator=plan.allocator)
    return _host_room(calibration, finding, plan.predicted_peak_bytes)


def _host_room(calibration: Calibration, finding: Finding, peak: int) -> int:
    """Bytes of host memory that are left for workers beside the training process."""
    host = calibration.budget("cpu")
    budget_bytes = host.budget_bytes if host else calibration.environment.memory.available_bytes
    if host is not None and calibration.options.workers is None:
        budget_bytes += host.reserved_bytes  # for samples that the process would keep: with workers, the workers keep them
    if finding.device == "cpu":
        return budget_bytes - finding.grown_bytes(peak)
    return budget_bytes - host_bytes(calibration, finding)
