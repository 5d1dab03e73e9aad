"""A calibration and a goal become a plan: exact settings, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from batchcal.calibration.rehearsal import Rehearsal
from batchcal.calibration.schema import OFF, Budget, Calibration, Finding, Objective, Options
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.core.units import format_bytes
from batchcal.guard.outcome import Fits
from batchcal.plan.expect import eval_peak_bytes, gradient_bytes, host_bytes, measured_bytes, peak_bytes, samples_per_s
from batchcal.plan.plan import KEYS, Plan
from batchcal.plan.reasons import reasons
from batchcal.plan.rehearsed import most_evaluated, most_rehearsed, rehearsal_of, tells
from batchcal.plan.split import split
from batchcal.plan.workers import choose_workers

MOST_STEPS: Final = 65_536
"""Micro-batches per optimizer step, at most: a plan lists them one by one."""


def make_plan(
    calibration: Calibration,
    *,
    effective_batch: int | None = None,
    world_size: int = 1,
    objective: Objective = "throughput",
    device: str | None = None,
    allocator: str | None = None,
    free_bytes_now: int | None = None,
) -> Plan:
    """The settings for training with `effective_batch` samples per optimizer step.

    Args:
        effective_batch: over all ranks. Default: the one that the calibration was asked for, else the capacity of every rank.
        world_size: ranks that share the effective batch evenly. Each has a budget of its own as large as the one measured.
        objective: `memory` takes the largest micro-batches, which are the fewest; `throughput` those that trained fastest under
            the policy, where they were timed.
        device: default: the one that the calibration chose.
        allocator: the policy under which the training will run. Default: the one that was calibrated.
        free_bytes_now: what may still be used on the device at this moment; a plan that needs more says so in `notices`.

    Raises:
        UsageError: an effective batch or a world size that cannot be.
        NoCalibration: nothing was verified on this device under this allocator.
    """
    if objective not in get_args(Objective):
        raise UsageError(f"objective {objective!r} is not known", try_="--objective throughput, or memory")
    finding = find(calibration, device=device, allocator=allocator)
    budget = calibration.budget(finding.device)
    if budget is None:
        raise NoCalibration(f"the calibration holds no budget for {finding.device}", try_="batchcal calibrate --force")
    wished, why_effective = _effective_batch(calibration, finding, effective_batch, world_size)
    per_rank = wished // world_size
    largest = _fastest(calibration, finding, per_rank) if objective == "throughput" else _capacity(finding)
    most = most_rehearsed(calibration, finding)
    if most is not None and most < largest.batch:
        largest = _Largest(most, "the most that a failed rehearsal leaves", largest.notices)
    chosen = _micro_batches(calibration, finding, budget, per_rank, largest)
    micro, steps = chosen.sizes[0], len(chosen.sizes)
    eval_batch = (finding.eval or finding.train).batch
    most_eval = most_evaluated(calibration, finding)
    if most_eval is not None:
        eval_batch = min(eval_batch, most_eval)
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
    plan = Plan(
        status="derived",
        micro_batch=micro,
        accumulation_steps=steps,
        effective_batch=wished,
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
        limited_by=_limited_by(finding, largest, chosen.sizes),
        device=finding.device,
        why={},
        notices=(
            *largest.notices,
            *chosen.notices,
            *_notices(calibration, finding, wished),
            *_too_little_now(peak, budget, free_bytes_now),
        ),
    )
    rehearsal = rehearsal_of(calibration, plan)
    if rehearsal is not None:
        plan = _as_rehearsed(plan, rehearsal, measured_bytes(calibration, finding, micro))
    why = reasons(plan, calibration, finding, budget, rehearsal) | {
        "micro_batch": chosen.why,
        "effective_batch": why_effective,
        "num_workers": workers.why,
        "prefetch_factor": workers.why_prefetch,
        "multiprocessing_context": workers.why_start,
        "device": "as asked" if device else "the device that the calibration chose",
    }
    return plan.model_copy(update={"why": {key: why[key] for key in KEYS if key in why}})


def _as_rehearsed(plan: Plan, rehearsal: Rehearsal, measured: int) -> Plan:
    """What was run whole is known, not predicted, and no less than probes of its size needed."""
    outcome = rehearsal.outcome
    if not isinstance(outcome, Fits):
        return plan
    return plan.model_copy(
        update={
            "status": "verified",
            "predicted_peak_bytes": max(outcome.peak.held_on(plan.device), measured),
            "predicted_samples_per_s": outcome.samples_per_s,
        }
    )


def is_rehearsed(calibration: Calibration, options: Options) -> bool:
    """Whether the plan that `options` ask for was run whole, or they ask for none of its own."""
    asked = options.effective_batch
    if asked is None or calibration.finding() is None:
        return True
    known = rehearsal_of(calibration, make_plan(calibration, effective_batch=asked, objective=options.objective))
    return known is not None and tells(known.outcome)


def find(calibration: Calibration, *, device: str | None = None, allocator: str | None = None) -> Finding:
    """The finding for `device` and `allocator`.

    Raises:
        NoCalibration: there is none; says what there is.
    """
    finding = calibration.finding(device=device, allocator=allocator)
    if finding is not None:
        return finding
    wanted = f"{device or calibration.chosen_device} with allocator {allocator or calibration.policy}"
    there = ", ".join(f"{found.device} with {found.allocator}" for found in calibration.findings)
    raise NoCalibration(
        f"nothing was verified for {wanted}",
        known=f"the calibration knows {there}" if there else "the calibration stopped before it verified anything",
        try_=f"batchcal calibrate --force --allocator {allocator or calibration.policy}",
    )


@dataclass(frozen=True)
class _Chosen:
    sizes: tuple[int, ...]
    why: str
    notices: tuple[str, ...] = ()


def _effective_batch(calibration: Calibration, finding: Finding, asked: int | None, world_size: int) -> tuple[int, str]:
    if world_size < 1:
        raise UsageError(f"world size {world_size} is below 1", try_="--world-size 1")
    if asked is not None:
        wished, why = asked, "as asked"
    elif calibration.effective_batch is not None:
        wished, why = calibration.effective_batch, "the calibration was asked for it"
    else:
        wished = finding.train.batch * world_size
        why = "none was asked for: the capacity" + (" of every rank" if world_size > 1 else "")
    if wished < 1:
        raise UsageError(f"effective batch {wished} is below 1", try_=f"--effective-batch {finding.train.batch}")
    most = finding.train.batch * MOST_STEPS * world_size
    if wished > most:
        raise UsageError(
            f"effective batch {wished} would take more than {MOST_STEPS} micro-batches a step",
            known=f"the capacity is {finding.train.batch}",
            try_=f"--effective-batch {most} or less",
        )
    if wished % world_size:
        nearest = max(round(wished / world_size), 1) * world_size
        raise UsageError(
            f"effective batch {wished} cannot be shared evenly by {world_size} ranks",
            known="uneven ranks would weigh samples differently",
            try_=f"--effective-batch {nearest}",
        )
    return wished, why


@dataclass(frozen=True)
class _Largest:
    """The largest micro-batch to take, and what it is."""

    batch: int
    name: str
    notices: tuple[str, ...] = ()


def _capacity(finding: Finding) -> _Largest:
    return _Largest(finding.train.batch, "the capacity")


def _limited_by(finding: Finding, largest: _Largest, sizes: tuple[int, ...]) -> str:
    if len(sizes) == 1 and sizes[0] < largest.batch:
        return "effective-batch"
    return "speed" if largest.batch < finding.train.batch else finding.train.limited_by


def _fastest(calibration: Calibration, finding: Finding, per_rank: int) -> _Largest:
    """Of the sizes up to the capacity that were timed under the policy; the capacity where none was."""
    race = calibration.sizes_of(finding)
    raced = None if race is None else race.fastest(per_rank)
    if raced is not None:
        return _capacity(finding) if raced >= finding.train.batch else _Largest(raced, "the fastest size that was raced")
    speeds = calibration.speeds_of(finding)
    fastest = None if speeds is None else speeds.fastest(per_rank)
    if fastest is None and speeds is not None:
        return _Largest(min(per_rank, finding.train.batch), "the whole effective batch, smaller than any size that was timed,")
    if fastest is None:
        text = f"no size was timed with {finding.allocator}, so the largest is taken; calibrate --allocator auto times some"
        return _Largest(finding.train.batch, "the capacity", (text,))
    if fastest.micro_batch >= finding.train.batch:
        return _capacity(finding)
    return _Largest(fastest.micro_batch, "the fastest size that was timed")


def _micro_batches(calibration: Calibration, finding: Finding, budget: Budget, per_rank: int, largest: _Largest) -> _Chosen:
    capacity = largest.batch
    multiple = calibration.options.multiple_of
    sizes = split(per_rank, capacity, multiple_of=multiple)
    notices = (
        (f"the micro-batches are no multiples of {multiple}: their sum has to be {per_rank}",)
        if multiple > 1 and any(size % multiple for size in sizes)
        else ()
    )
    why = (
        f"{largest.name} is {capacity}"
        if sizes[0] == capacity
        else f"{per_rank} in the fewest parts of at most {capacity}, {largest.name}"
        if len(sizes) > 1
        else f"the whole effective batch fits: {largest.name} is {capacity}"
    )
    held = gradient_bytes(calibration, finding, len(sizes))
    if not held or peak_bytes(calibration, finding, sizes[0]) + held <= budget.budget_bytes:
        return _Chosen(sizes, why, notices=notices)
    smaller = _largest_beside_gradients(calibration, finding, budget.budget_bytes - held, capacity)
    if not smaller:
        text = f"gradients ({format_bytes(held)}) stay alive while micro-batches accumulate: the peak may exceed the budget"
        return _Chosen(sizes, why, notices=(*notices, text))
    return _Chosen(
        split(per_rank, smaller, multiple_of=multiple),
        f"gradients ({format_bytes(held)}) stay alive while micro-batches accumulate: {smaller} fit beside, {capacity} alone",
        notices=notices,
    )


def _largest_beside_gradients(calibration: Calibration, finding: Finding, budget_bytes: int, capacity: int) -> int:
    """The largest size in [1, capacity) whose peak is within `budget_bytes`; 0: none. The peak does not fall with the size."""
    low, high = 0, capacity
    while high - low > 1:
        middle = (low + high) // 2
        if peak_bytes(calibration, finding, middle) <= budget_bytes:
            low = middle
        else:
            high = middle
    return low


def host_room(calibration: Calibration, plan: Plan) -> int:
    """Bytes of host memory that `plan` leaves for workers beside the training process."""
    finding = find(calibration, device=plan.device, allocator=plan.allocator)
    return _host_room(calibration, finding, plan.predicted_peak_bytes)


def _host_room(calibration: Calibration, finding: Finding, peak: int) -> int:
    """Bytes of host memory that are left for workers beside the training process."""
    host = calibration.budget("cpu")
    budget_bytes = host.budget_bytes if host else calibration.environment.memory.available_bytes
    return budget_bytes - (peak if finding.device == "cpu" else host_bytes(calibration, finding))


def _notices(calibration: Calibration, finding: Finding, wished: int) -> tuple[str, ...]:
    notices = []
    samples = None if calibration.facts is None else calibration.facts.train_samples
    if samples is not None and wished > samples:
        notices.append(f"the effective batch is larger than the dataset ({samples} samples): an epoch is one smaller step")
    checkpointed = calibration.options.activation_checkpointing
    if checkpointed != OFF:
        notices.append(
            f"measured with activation checkpointing ({checkpointed}): train turns it on, a loop of your own does by "
            f"GradientCheckpointManager(model, {checkpointed!r}).enable()"
        )
    if calibration.status != "complete":
        rest = finding.train.undone or "; ".join(calibration.undone)
        notices.append("the search ended before it was settled" + (f": {rest}" if rest else ""))
    return tuple(notices)


def _too_little_now(peak: int, budget: Budget, free_bytes_now: int | None) -> tuple[str, ...]:
    if free_bytes_now is None or peak <= free_bytes_now:
        return ()
    return (
        f"the plan needs {format_bytes(peak)} at its peak and {format_bytes(free_bytes_now)} are free now"
        f" (the budget is {format_bytes(budget.budget_bytes)})",
    )
