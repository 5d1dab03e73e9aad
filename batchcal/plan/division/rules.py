"""Rules for dividing a batch of this task into micro-batches, and the least size of these.

Division is exact if the loss is the mean over its weight. If the checks of a calibration show that it is not, a plan has one
micro-batch, unless the user accepts the mismatch. A model with batch statistics (BatchNorm) trains differently when its batch is
divided. Such a division is allowed down to a least micro-batch, and is marked. Several ranks divide every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchcal.calibration.records.promises import PromiseCheck, PromiseName
from batchcal.calibration.schema import Calibration, Options
from batchcal.core.errors import UsageError
from batchcal.core.units import count_of
from batchcal.plan.division.split import split, split_above
from batchcal.plan.plan import Inexact

LEAST_WITH_STATISTICS: Final = 16
"""Samples that batch statistics need. A ResNet-50 has an error of 23.6 % on ImageNet with 32 samples for each BatchNorm, 23.7
with 16, 24.8 with 8, 27.3 with 4 and 34.7 with 2 (Wu and He 2018, Group Normalization, table 2)."""
BY_COMMAND: Final = "the command adds the gradients of its micro-batches itself, and batchcal does not check how"


class DivisionRefused(UsageError):
    """The effective batch cannot be divided into sizes that the task accepts, or not without changing the training."""


@dataclass(frozen=True)
class Division:
    """Effects of dividing a batch, and the user's consent to them."""

    mean: PromiseCheck | None
    """The violated promise that the loss is a mean over its weight. None: it holds, or it could not be checked."""
    statistics: PromiseCheck | None
    """The violated promise that no layer depends on the other samples of a batch. None: it holds."""
    accepted: bool
    """True if the user accepts the mismatch of `mean`."""
    least: int
    """Samples of the smallest micro-batch of a divided batch."""
    unchecked: str = ""
    """Reason why it is unknown whether the loss is a mean over its weight. Empty: it was checked."""
    step: PromiseCheck | None = None
    """The violated promise that the optimizer's step does not compute the loss again. None: it holds."""
    world_size: int = 1
    """Ranks that share a batch. All sizes here are those of one rank; messages show those of all ranks."""

    @property
    def undivided(self) -> str:
        """Reason why no batch may be divided. Empty: it may be divided."""
        if self.step is not None:
            return self.step.cause
        return (
            "" if self.mean is None or self.accepted else f"the gradient would differ by {percent(self.mean)}: {self.mean.cause}"
        )

    def inexact(self, steps: int) -> tuple[Inexact, ...]:
        """Return the changes when a batch is divided into `steps` micro-batches on each rank. Empty: only rounding."""
        changed: tuple[tuple[Inexact, bool], ...] = (
            ("loss", self.mean is not None),
            ("batch-statistics", self.statistics is not None),
        )
        return tuple(name for name, changes in changed if changes and steps * self.world_size > 1)

    def why(self, steps: int) -> str:
        """Explain how exact `steps` micro-batches on each rank are."""
        if steps * self.world_size == 1:
            return "the batch is not divided"
        parts = []
        if self.mean is not None:
            parts.append(f"the gradient differs by up to {percent(self.mean)}, which the user accepts: {self.mean.cause}")
        if self.statistics is not None:
            parts.append(f"{self.statistics.cause} normalise each micro-batch by its own statistics")
        over = f"the batch is divided over {self.world_size} ranks: " if parts and self.world_size > 1 else ""
        return (
            over + "; ".join(parts)
            or self.unchecked
            or "the gradients of the micro-batches add up to the gradient of the complete batch"
        )

    def check_ranks(self, total: int, capacity: int) -> None:
        """Raises:
        DivisionRefused: the ranks would divide a batch that must not be divided. `total` is the number of samples of one rank.
        """
        if self.world_size == 1 or self.mean is None or self.accepted:
            return
        samples = total * self.world_size
        fix = f"; or in the task: {self.mean.fix}" if self.mean.fix else ""
        raise DivisionRefused(
            f"an effective batch of {samples} would be divided over {self.world_size} ranks, which changes the training",
            known=f"the gradient would differ by {percent(self.mean)}: {self.mean.cause}. "
            f"The largest undivided batch is {capacity}, on one rank",
            try_=f"--world-size 1 --effective-batch {min(samples, capacity)}{fix}; or --accept-inexact to accept the mismatch",
        )

    def sizes(
        self, total: int, largest: int, capacity: int, *, multiple_of: int = 1, largest_undivided: int | None = None
    ) -> tuple[int, ...]:
        """Return micro-batches for `total` samples, none above `largest`; up to `capacity` if smaller ones are not allowed.

        Args:
            largest_undivided: the largest batch of one micro-batch, if it is above `capacity`: no gradients are in memory then.

        Raises:
            DivisionRefused: no such micro-batches exist.
        """
        largest_undivided = max(capacity, largest_undivided or 0)
        if self.undivided:
            if total <= largest_undivided:
                return (total,)
            raise self.refusal(total, largest_undivided)
        sizes = split_above(self.least, total, largest, capacity, multiple_of=multiple_of)
        if sizes:
            return sizes
        if self.least <= total <= largest_undivided:
            return (total,)
        raise self._below_least(total, split(total, capacity, multiple_of=multiple_of)[-1], largest_undivided)

    def refusal(self, total: int, capacity: int) -> DivisionRefused:
        """Return the error that `total` samples cannot be trained undivided, because at most `capacity` can."""
        total, capacity = total * self.world_size, capacity * self.world_size
        if self.step is not None:
            return DivisionRefused(
                f"an effective batch of {total} does not fit undivided, and the optimizer needs one micro-batch per step",
                known=f"{self.undivided}. The largest undivided batch is {capacity}",
                try_=f"--effective-batch {capacity}; or in the task: {self.step.fix}",
            )
        fix = "" if self.mean is None or not self.mean.fix else f"; or in the task: {self.mean.fix}"
        return DivisionRefused(
            f"an effective batch of {total} does not fit undivided, and dividing it would change the training",
            known=f"{self.undivided}. The largest undivided batch is {capacity}",
            try_=f"--effective-batch {capacity}{fix}; or --accept-inexact to accept the mismatch",
        )

    def _below_least(self, total: int, smallest: int, capacity: int) -> DivisionRefused:
        cause = "" if self.statistics is None else f" for batch statistics ({self.statistics.cause})"
        ranks = self.world_size
        largest = "undivided batch" if ranks == 1 else f"batch of one micro-batch on each of {ranks} ranks"
        # A rank with too few samples only needs the least number.
        valid = (self.least if total < self.least <= capacity else capacity) * ranks
        alternative = f"--effective-batch {valid}, or " if capacity >= self.least else ""
        return DivisionRefused(
            f"an effective batch of {total * ranks} would be divided into micro-batches of {count_of(smallest, 'sample')}, "
            f"below the minimum of {self.least}{cause}",
            known=f"the largest {largest} is {capacity * ranks}",
            try_=f"{alternative}--min-micro-batch {smallest}",
        )


def division_of(
    calibration: Calibration,
    total: int,
    *,
    world_size: int = 1,
    accept_inexact: bool | None = None,
    min_micro_batch: int | None = None,
) -> Division:
    """Return the rules for `total` samples per optimizer step on one rank.

    Args:
        world_size: ranks that share the batch.
        accept_inexact: default: the option of the calibration.
        min_micro_batch: the same. If neither is set: 16 or the complete batch for a model with batch statistics.
    """
    statistics = _violated(calibration, "batch-statistics")
    requested = min_micro_batch if min_micro_batch is not None else calibration.options.min_micro_batch
    least = requested if requested is not None else LEAST_WITH_STATISTICS if statistics is not None else 1
    return Division(
        mean=_violated(calibration, "mean-over-weight"),
        statistics=statistics,
        accepted=calibration.options.accept_inexact if accept_inexact is None else accept_inexact,
        least=least if statistics is not None and world_size > 1 else min(least, total),
        unchecked=_unchecked(calibration) if calibration.command is None else BY_COMMAND,
        step=_violated(calibration, "step-without-loss"),
        world_size=world_size,
    )


def has_consent(calibration: Calibration, options: Options) -> bool:
    """True if the calibration has all the consent that `options` give. Earlier consent remains valid."""
    then = calibration.options
    return then.accept_inexact >= options.accept_inexact and options.min_micro_batch in (None, then.min_micro_batch)


def mismatch_note(check: PromiseCheck) -> str:
    """Return a note about a violated promise, with a remedy. Empty: it is not violated."""
    if check.result != "violated":
        return ""
    fix = f"; fix: {check.fix}" if check.fix else ""
    return f"micro-batches would change the gradient by up to {percent(check)}: {check.cause}{fix}"


def percent(check: PromiseCheck) -> str:
    """Return the mismatch of a violated promise: `76 %`, `0.4 %`."""
    if check.mismatch is None:
        return "an unknown amount"
    value = check.mismatch * 100
    return f"{value:.0f} %" if value >= 1 else f"{value:.1g} %"


def _unchecked(calibration: Calibration) -> str:
    check = next((check for check in calibration.promises if check.promise == "mean-over-weight"), None)
    if check is not None and check.result != "not-checked":
        return ""
    reason = "the calibration did not check it" if check is None else check.cause
    return f"it is unknown whether the gradients of the micro-batches add up to the gradient of the complete batch: {reason}"


def _violated(calibration: Calibration, name: PromiseName) -> PromiseCheck | None:
    return next((check for check in calibration.promises if check.promise == name and check.result == "violated"), None)
