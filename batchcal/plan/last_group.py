"""The last, smaller group of an epoch: the samples that are left when the dataset is no multiple of the effective batch."""

from __future__ import annotations

from batchcal.calibration.schema import Calibration
from batchcal.calibration.size_rule import SizeRule
from batchcal.core.units import count_of
from batchcal.plan.by_rule import last_group_by, restricting
from batchcal.plan.division import Division
from batchcal.plan.group_limits import GroupLimits
from batchcal.plan.plan import Plan
from batchcal.plan.split import split, split_above


def last_group_of(
    calibration: Calibration, effective_batch: int, micro_batch: int, division: Division, limits: GroupLimits
) -> tuple[tuple[int, ...], str]:
    """Micro-batches of the last group, and why the task does not take them. Empty: there is none, or the number of samples is
    unknown.

    It obeys the rules of every other group: it is undivided where those are, and its micro-batches are no smaller than the least
    allowed, where the group has so many samples.
    """
    samples = None if calibration.facts is None else calibration.facts.train_samples
    rest = 0 if samples is None else samples % effective_batch
    if not rest:
        return (), ""
    return _divided(rest, micro_batch, rule=restricting(calibration), undivided=division.undivided != "", limits=limits)


def smaller_group(plan: Plan, samples: int) -> tuple[tuple[int, ...], str]:
    """Micro-batches of a last group of `samples`, fewer than the effective batch, and why the task does not take them.

    The number of samples may differ from that of `plan.last_group` where an epoch is resumed with another effective batch.
    """
    if samples == sum(plan.last_group):
        return plan.last_group, plan.last_group_error
    undivided = plan.undivided != ""
    return _divided(samples, plan.micro_batch, rule=plan.size_rule, undivided=undivided, limits=plan.group_limits)


def group_limits(calibration: Calibration, division: Division, capacity: int) -> GroupLimits:
    """The limits of every smaller group of a plan whose largest micro-batch that fits is `capacity`."""
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
    """Micro-batches of `rest` samples, and why the task does not take them."""
    most = max(micro_batch, limits.most or 0)
    if rule is not None:
        sizes, error = last_group_by(rule, rest, micro_batch, undivided=undivided, least=limits.least, most=most)
    else:
        # Fewer samples than a whole group: where no sizes are above the least, the parts are as for any group.
        above = (
            (rest,)
            if undivided
            else split_above(min(limits.least, rest), rest, micro_batch, most, multiple_of=limits.multiple_of)
        )
        sizes, error = above or split(rest, micro_batch, multiple_of=limits.multiple_of), ""
    return sizes, error or (limits.single_sample_error if 1 in sizes else "")


def last_group_notice(last_group: tuple[int, ...], division: Division) -> str:
    """What to know of a last group whose micro-batches are below the least. Empty: they are not."""
    if len(last_group) < 2 or min(last_group) >= division.least:
        return ""
    samples, smallest = count_of(sum(last_group), "sample"), count_of(min(last_group), "sample")
    cause = "" if division.statistics is None else " for batch statistics"
    return (
        f"the last group of an epoch has {samples} in micro-batches of {smallest}, below the least of {division.least}{cause}: "
        "--drop-last leaves it out"
    )


def last_group_fails(last_group: tuple[int, ...], error: str) -> str:
    """What to know of a plan whose last group fails with `error`, in the rehearsal or by the rule of the task's sizes, and what
    helps."""
    samples = count_of(sum(last_group), "sample")
    return f"the last group of an epoch has {samples} and fails ({error}): train with --drop-last"
