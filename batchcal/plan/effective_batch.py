"""The effective batch of a plan: samples per optimizer step, and their source. Only this module decides the precedence.

A flag, BATCHCAL_EFFECTIVE_BATCH and a file come first, in this order (`core.settings` reads them), then `Task.effective_batch`.
A calibration is a cache: its effective batch is shown, but does not decide that of a later command.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from batchcal.calibration.records.speed import ALIKE
from batchcal.calibration.schema import Calibration, Finding
from batchcal.core.errors import UsageError

MOST_STEPS: Final = 65_536
"""Largest number of micro-batches per optimizer step: a plan lists each of them."""
NOT_SET: Final = "the effective batch (samples per optimizer step) is not set"
EXAMPLE: Final = 64
"""Effective batch that a message suggests if nothing was measured yet."""


class EffectiveBatch(NamedTuple):
    samples: int
    why: str
    by_user: bool
    """False: only the calibration was made for it."""


def of_task(calibration: Calibration) -> int | None:
    """`Task.effective_batch`, as the calibration recorded it."""
    return None if calibration.facts is None else calibration.facts.effective_batch


def effective_batch_of(calibration: Calibration, requested: int | None) -> EffectiveBatch | None:
    """Return the effective batch of a plan from `calibration`. None: not set.

    Args:
        requested: value from a flag, a variable or a file.
    """
    if requested is not None:
        return EffectiveBatch(requested, "as requested", by_user=True)
    task = of_task(calibration)
    if task is not None:
        return EffectiveBatch(task, "Task.effective_batch", by_user=True)
    if calibration.effective_batch is not None:
        return EffectiveBatch(calibration.effective_batch, "the effective batch of the calibration", by_user=False)
    return None


def unset_remark(calibration: Calibration) -> str:
    """Return the remark in views of a calibration about its plan if neither it nor its task has an effective batch; or empty."""
    if calibration.finding() is None or effective_batch_of(calibration, calibration.effective_batch) is not None:
        return ""
    micro = "largest" if calibration.options.objective == "memory" else "fastest"
    return f"effective batch not set: this plan uses the {micro} micro-batch; train and exec need --effective-batch"


def require(calibration: Calibration, requested: int | None) -> None:
    """Refuse to choose the effective batch for the user.

    Raises:
        UsageError: neither a flag, a variable, a file nor the task sets it.
    """
    setting = effective_batch_of(calibration, requested)
    if setting is not None and setting.by_user:
        return
    finding = calibration.finding()
    example = (
        setting.samples if setting is not None else EXAMPLE if finding is None else fastest_micro_batch(calibration, finding)
    )
    raise not_set(example, because=f"{'this calibration was made for' if setting else 'the fastest micro-batch is'} {example}")


def not_set(example: int = EXAMPLE, *, because: str = "") -> UsageError:
    """Return the error for a missing effective batch, with four ways to set it.

    Args:
        because: the reason for suggesting `example`.
    """
    return UsageError(
        NOT_SET,
        known="it decides what the model learns, so batchcal does not choose it" + (f"; {because}" if because else ""),
        try_=f"--effective-batch {example}\n"
        f"BATCHCAL_EFFECTIVE_BATCH={example} in the environment\n"
        f"effective_batch = {example} below [plan] in batchcal.toml or in another config\n"
        f"batchcal.Task(..., effective_batch={example})",
    )


def check(effective_batch: int, finding: Finding, world_size: int) -> None:
    """Raises:
    UsageError: the effective batch cannot be trained, or not by this number of ranks.
    """
    if effective_batch < 1:
        raise UsageError(
            f"effective batch {effective_batch} is below 1", try_=f"--effective-batch {finding.train.batch * world_size}"
        )
    most = finding.train.batch * MOST_STEPS * world_size
    if effective_batch > most:
        raise UsageError(
            f"effective batch {effective_batch} would need more than {MOST_STEPS} micro-batches per step",
            known=f"the capacity is {finding.train.batch}",
            try_=f"--effective-batch {most} or less",
        )
    if effective_batch % world_size:
        nearest = max(round(effective_batch / world_size), 1) * world_size
        raise UsageError(
            f"effective batch {effective_batch} cannot be shared evenly by {world_size} ranks",
            known="ranks with different numbers of samples would weight samples differently",
            try_=f"--effective-batch {nearest}",
        )


def fastest_micro_batch(calibration: Calibration, finding: Finding) -> int:
    """Return the micro-batch that trains fastest if it is also the effective batch; the capacity if none was timed.

    Sizes were raced as parts of one large step, which has one update of the optimizer. Alone, each size has its own update.
    """
    capacity = finding.train.batch
    race, speeds = calibration.sizes_of(finding), calibration.speeds_of(finding)
    times = () if speeds is None else tuple(time for time in speeds.times if time.micro_batch <= capacity)
    seconds = {time.micro_batch: 1 / time.samples_per_s(time.micro_batch) for time in times}
    if race is not None:
        update_s = min((time.update_s for time in times), default=0.0)
        raced = [(timed.micro_batch, timed.samples_per_s) for timed in race.sizes if timed.micro_batch <= capacity]
        seconds = {
            size: max(1 / rate - update_s / max(race.effective_batch, 1), 0.0) + update_s / size for size, rate in raced if rate
        } or seconds
    if not seconds:
        return capacity
    least = min(seconds.values())
    return min(size for size, size_s in seconds.items() if size_s <= least * ALIKE)
