"""The last, smaller group of an epoch: the samples that remain if the dataset is not a multiple of the effective batch."""

from __future__ import annotations

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration
from batchcal.core.units import count_of
from batchcal.plan.division.group_limits import GroupLimits
from batchcal.plan.division.rules import Division
from batchcal.plan.division.size_rule import last_group_by, restricting
from batchcal.plan.division.split import split, split_above
from batchcal.plan.plan import Plan


def last_group_of(
    calibration: Calibration, effective_batch: int, micro_batch: int, division: Division, limits: GroupLimits
) -> tuple[tuple[int, ...], str]:
    """Return the micro-batches of the last group, and the reason why the task does not accept them.

    No micro-batches: there is no such group, or the number of samples is unknown. The group obeys the rules of all other groups:
    it is undivided if those are, and its micro-batches are not below the least size if the group has enough samples.
    """
    samples = None if calibration.facts is None else calibration.facts.train_samples
    rest = 0 if samples is None else samples % effective_batch
    if not rest:
        return (), ""
    return _divided(rest, micro_batch, rule=restricting(calibration), undivided=division.undivided != "", limits=limits)


def smaller_group(plan: Plan, samples: int) -> tuple[tuple[int, ...], str]:
    """Return the micro-batches of a last group of `samples`, and the reason why the task does not accept them.

    `samples` is below the effective batch. It may differ from the size of `plan.last_group` if an epoch is resumed
    with another effective batch.
    """
    if samples == sum(plan.last_group):
        return plan.last_group, plan.last_group_error
    undivided = plan.undivided != ""
    return _divided(samples, plan.micro_batch, rule=plan.size_rule, undivided=undivided, limits=plan.group_limits)


def group_limits(calibration: Calibration, division: Division, capacity: int) -> GroupLimits:
    """Return the limits of every smaller group of a plan. `capacity` is the largest micro-batch that fits."""
    statistics = division.statistics
    return GroupLimits(
        least=division.least,
        most=capacity,
        multiple_of=calibration.options.multiple_of,
        single_sample_error="" if statistics is None else statistics.single_sample_error,
    )


def _divided(
    rest: int, micro_batch: int, *, rule: SizeRule | None, undivided: bool, limits: GroupLimits
) -> tuple[tuple[int, ...], str]:
    """Return the micro-batches of `rest` samples, and the reason why the task does not accept them."""
    most = max(micro_batch, limits.most or 0)
    if rule is not None:
        sizes, error = last_group_by(rule, rest, micro_batch, undivided=undivided, least=limits.least, most=most)
    else:
        # The group is smaller than a full one. If no sizes reach the least size, it is split like any other group.
        above = (
            (rest,)
            if undivided
            else split_above(min(limits.least, rest), rest, micro_batch, most, multiple_of=limits.multiple_of)
        )
        sizes, error = above or split(rest, micro_batch, multiple_of=limits.multiple_of), ""
    return sizes, error or (limits.single_sample_error if 1 in sizes else "")


def last_group_notice(last_group: tuple[int, ...], division: Division) -> str:
    """Return a notice about a last group with micro-batches below the least size. Empty: none is below it."""
    if len(last_group) < 2 or min(last_group) >= division.least:
        return ""
    samples, smallest = count_of(sum(last_group), "sample"), count_of(min(last_group), "sample")
    cause = "" if division.statistics is None else " for batch statistics"
    return (
        f"the last group of an epoch has {samples} in micro-batches of {smallest}, below the minimum of {division.least}{cause}: "
        "--drop-last skips it"
    )


def last_group_fails(last_group: tuple[int, ...], error: str) -> str:
    """Return a notice about a last group that fails with `error`, in the rehearsal or by the task's size rule, with a remedy."""
    samples = count_of(sum(last_group), "sample")
    return f"the last group of an epoch has {samples} and fails ({error}): train with --drop-last"
