"""Sizes of a plan if the task does not accept every batch size."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.schema import Calibration
from batchcal.plan.division.rules import DivisionRefused
from batchcal.plan.division.split import nearest_total, split_by

SLOW: Final = 4
"""A plan has a notice if its micro-batches are this many times smaller than possible."""


def restricting(calibration: Calibration) -> SizeRule | None:
    """Return the rule of the task's sizes if it is more than an upper bound."""
    rule = calibration.size_rule
    return rule if rule is not None and rule.restricts else None


def divided(
    rule: SizeRule,
    total: int,
    largest: int,
    *,
    most: int,
    least: int = 1,
    largest_undivided: int | None = None,
    world_size: int = 1,
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return micro-batches of `total` samples that the task accepts, with notices about them.

    Args:
        largest: the target size. A larger size, up to `most`, may be needed.
        least: the smallest micro-batch that other rules allow.
        largest_undivided: the largest undivided batch, if it is larger than `most`.
        world_size: number of ranks. Each has `total` samples.

    Raises:
        DivisionRefused: no such micro-batches have that sum. The error names the nearest effective batch.
    """
    allowed = rule.model_copy(update={"least": max(rule.least, least)})
    sizes = _split(allowed, total, largest, most)
    if not sizes and total <= (largest_undivided or 0) and allowed.admits(total):
        sizes = (total,)
    near = None
    if not sizes or sizes[0] * SLOW < min(largest, total):
        near = _nearest(allowed, total, largest, most)
    alternative = "" if near is None else f"--effective-batch {near * world_size}"
    if not sizes:
        smaller = _split(rule, total, largest, most)
        alternatives = (alternative, f"--min-micro-batch {min(smaller)}" if smaller else "")
        raise DivisionRefused(
            f"no micro-batches that the task accepts add up to an effective batch of {total * world_size}",
            known=f"the task {rule.text}; the largest micro-batch is {most}"
            + (f", and the minimum is {least}" if smaller else ""),
            try_=", or ".join(filter(None, alternatives)) or "another --effective-batch",
        )
    if near is None or near == total:
        return sizes, ()
    slow = f"{total * world_size} has no larger divisor up to {most}, and the task {rule.text}: {alternative} is faster"
    return sizes, (slow,)


def _split(rule: SizeRule, total: int, largest: int, most: int) -> tuple[int, ...]:
    """Split into sizes near `largest`, or up to `most` if there are none."""
    return split_by(rule, total, largest, most=most) or (() if rule.one_size else split_by(rule, total, most))


def _nearest(rule: SizeRule, total: int, largest: int, most: int) -> int | None:
    """Return the total nearest to `total` that `_split` can split. None: none is near."""
    if rule.one_size:
        return nearest_total(rule, total, largest, most=most)
    near = (nearest_total(rule, total, size) for size in (largest, most))
    return min((size for size in near if size is not None), key=lambda size: (abs(size - total), -size), default=None)


def evaluated(rule: SizeRule, size: int, micro_batch: int) -> int:
    """Return an evaluation batch of at most `size` that the task accepts; the micro-batch if a process accepts one size only."""
    return micro_batch if rule.one_size else rule.at_most(size) or size


def last_group_by(
    rule: SizeRule, rest: int, micro_batch: int, *, undivided: bool = False, least: int = 1, most: int | None = None
) -> tuple[tuple[int, ...], str]:
    """Return the micro-batches of a last, smaller group of `rest` samples, and the reason why the task does not accept them.

    Args:
        undivided: the group must not be divided.
        least, most: micro-batches below `least` are avoided, with sizes up to `most`.
    """
    accepted = alike(rule, micro_batch)
    sizes: tuple[int, ...]
    if undivided:
        sizes = (rest,) if accepted.admits(rest) else ()
    else:
        above = accepted.model_copy(update={"least": max(accepted.least, min(least, rest))})
        sizes = _split(above, rest, micro_batch, max(micro_batch, most or 0)) or split_by(accepted, rest, micro_batch)
    return (sizes, "") if sizes else ((rest,), f"the task {rule.text}")


def alike(rule: SizeRule, micro_batch: int) -> SizeRule:
    """The rule of a process that runs `micro_batch`."""
    return SizeRule(least=micro_batch, most=micro_batch) if rule.one_size else rule
