"""Micro-batches of a plan: the target size, and the sizes that result from division and from the task's own sizes."""

from __future__ import annotations

from dataclasses import dataclass

from batchcal.calibration.schema import Budget, Calibration, Finding
from batchcal.core.errors import NoCalibration
from batchcal.core.units import format_bytes
from batchcal.plan import effective_batch as effective
from batchcal.plan.division import size_rule
from batchcal.plan.division.rules import Division
from batchcal.plan.expectations import gradient_bytes, peak_bytes
from batchcal.plan.rehearsals.rehearsed import most_rehearsed
from batchcal.values.settings import Objective


@dataclass(frozen=True)
class MicroBatches:
    """Sizes whose sum is the effective batch of one rank, with the reason."""

    sizes: tuple[int, ...]
    why: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Largest:
    """The largest micro-batch to use, and its description."""

    batch: int
    name: str
    notices: tuple[str, ...] = ()


def largest_of(calibration: Calibration, finding: Finding, objective: Objective, per_rank: int | None) -> Largest:
    """Return the target size of the micro-batches.

    Args:
        per_rank: samples of a step on one rank. None: not set.

    Raises:
        NoCalibration: a rehearsal showed that not even one sample fits.
    """
    largest = _capacity(finding)
    if objective == "throughput" and per_rank is not None:
        largest = _fastest(calibration, finding, per_rank)
    elif objective == "throughput":
        batch = effective.fastest_micro_batch(calibration, finding)
        largest = largest if batch >= finding.train.batch else Largest(batch, "the fastest size that was timed")
    remaining = most_rehearsed(calibration, finding)
    if remaining is not None and remaining < 1:
        raise NoCalibration(
            f"not even one sample fits on {finding.device}: the rehearsal of micro-batch 1 ran out of memory",
            try_="use a larger container, a larger --memory-limit or a smaller model; then run batchcal calibrate --force",
        )
    if remaining is not None and remaining < largest.batch:
        return Largest(remaining, "the largest size after a failed rehearsal", largest.notices)
    return largest


def _capacity(finding: Finding) -> Largest:
    return Largest(finding.train.batch, "the capacity")


def limited_by(finding: Finding, largest: Largest, sizes: tuple[int, ...]) -> str:
    if len(sizes) == 1 and sizes[0] < largest.batch:
        return "effective-batch"
    return "speed" if largest.batch < finding.train.batch else finding.train.limited_by


def _fastest(calibration: Calibration, finding: Finding, per_rank: int) -> Largest:
    """Return the fastest of the sizes up to the capacity that were timed under the policy; the capacity if none was timed."""
    race = calibration.sizes_of(finding)
    raced = None if race is None else race.fastest(per_rank)
    if raced is not None:
        return _capacity(finding) if raced >= finding.train.batch else Largest(raced, "the fastest size in the race")
    speeds = calibration.speeds_of(finding)
    fastest = None if speeds is None else speeds.fastest(per_rank)
    if fastest is None and speeds is not None:
        return Largest(min(per_rank, finding.train.batch), "the complete effective batch, smaller than every timed size,")
    if fastest is None:
        remedy = "a longer --time-limit" if calibration.options.allocator == "auto" else "batchcal calibrate --allocator auto"
        text = f"no size was timed with {finding.allocator}, so the plan uses the largest; to time sizes, use {remedy}"
        return Largest(finding.train.batch, "the capacity", (text,))
    if fastest.micro_batch >= finding.train.batch:
        return _capacity(finding)
    return Largest(fastest.micro_batch, "the fastest size that was timed")


def micro_batches_of(
    calibration: Calibration,
    finding: Finding,
    budget: Budget,
    per_rank: int,
    *,
    largest: Largest,
    division: Division,
    most: int,
) -> MicroBatches:
    """Return micro-batches of `per_rank` samples.

    Args:
        largest: the target size.
        most: the largest micro-batch that fits, which a rule of division may need.

    Raises:
        DivisionRefused: no such micro-batches exist.
    """
    capacity = largest.batch
    division.check_ranks(per_rank, most)
    sizes, notices = divide(calibration, division, per_rank, capacity, most)
    subject = "the complete effective batch" if division.world_size == 1 else "the complete share of a rank"
    why = (
        f"{subject}, which must not be divided"
        if division.undivided
        else f"micro-batches of at least {division.least}" + (", for batch statistics" if division.statistics else "")
        if sizes[0] > capacity
        else f"{largest.name} is {capacity}"
        if sizes[0] == capacity
        else f"{per_rank} samples in the fewest micro-batches of at most {capacity}, {largest.name}"
        if len(sizes) > 1
        else f"{subject} fits: {largest.name} is {capacity}"
    )
    extra_bytes = gradient_bytes(calibration, finding, len(sizes))
    extra = f"gradients ({format_bytes(extra_bytes)}) stay in memory during accumulation"
    usable = finding.usable_bytes(budget.budget_bytes)
    if not extra_bytes or peak_bytes(calibration, finding, sizes[0]) + extra_bytes <= usable:
        return MicroBatches(sizes, why, notices=notices)
    smaller = _largest_with_gradients(calibration, finding, usable - extra_bytes, capacity)
    if not smaller:
        text = f"{extra}: the peak may exceed the budget"
        return MicroBatches(sizes, why, notices=(*notices, text))
    sizes, notices = divide(calibration, division, per_rank, smaller, smaller, largest_undivided=most)
    why = f"{extra}: {smaller} samples fit with them, {most} without"
    return MicroBatches(sizes, why, notices=notices)


def divide(
    calibration: Calibration, division: Division, total: int, largest: int, most: int, *, largest_undivided: int | None = None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return micro-batches of `total` samples by the rules of division and of the task's sizes, with notices about them.

    Args:
        largest: the target size.
        most: the largest micro-batch that fits.
        largest_undivided: the largest undivided batch, if it is larger than `most`.

    Raises:
        DivisionRefused: no such micro-batches exist.
    """
    multiple, ranks = calibration.options.multiple_of, division.world_size
    notices: tuple[str, ...] = ()
    rule = size_rule.restricting(calibration)
    if rule is not None and division.undivided and not rule.admits(total):
        raise division.refusal(total, rule.at_most(most) or rule.smallest)
    if rule is None or division.undivided:
        sizes = division.sizes(total, largest, most, multiple_of=multiple, largest_undivided=largest_undivided)
    else:
        near = rule.at_most(largest) or min(rule.smallest, most)
        sizes, notices = size_rule.divided(
            rule, total, near, most=most, least=division.least, largest_undivided=largest_undivided, world_size=ranks
        )
    if multiple > 1 and any(size % multiple for size in sizes):
        suffix = " on each rank" if ranks > 1 else ""
        notices += (f"the micro-batches are not multiples of {multiple}: their sum must be {total}{suffix}",)
    return sizes, notices


def _largest_with_gradients(calibration: Calibration, finding: Finding, budget_bytes: int, capacity: int) -> int:
    """Largest size in [1, capacity) with a peak within `budget_bytes`; 0: none. The peak does not fall with the size."""
    low, high = 0, capacity
    while high - low > 1:
        middle = (low + high) // 2
        if peak_bytes(calibration, finding, middle) <= budget_bytes:
            low = middle
        else:
            high = middle
    return low
