"""The learning rate over a training: warm-up, then a schedule. It depends on the trained samples, not on steps."""

from __future__ import annotations

import math
from typing import Final, get_args

from torch import Tensor
from torch.optim import Optimizer

from batchcal.core.errors import UsageError
from batchcal.train.sizes.normalizer import EffectiveBatchSizeNormalizer
from batchcal.values.settings import Schedule
from batchcal.workload.model.optimizers import groups_with_a_rate

SCHEDULES: Final[tuple[Schedule, ...]] = get_args(Schedule)


class LearningRate:
    """Rate of every group of an optimizer, as a factor of its rate at the start of the training.

    A run that resumes with another effective batch makes other steps; at the same sample it has the same rate.

    Args:
        samples: samples in all epochs. None: a stream whose end is unknown.
        normalizer: adapts the rate to steps of another size than the one that it was chosen for.

    Raises:
        UsageError: a schedule or a warm-up is set for a stream, or the schedule does not exist.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        schedule: Schedule,
        warmup: float,
        samples: int | None,
        normalizer: EffectiveBatchSizeNormalizer,
    ) -> None:
        if schedule not in SCHEDULES:
            raise UsageError(f"there is no schedule {schedule!r}", known=f"valid values: {', '.join(SCHEDULES)}", try_="cosine")
        if samples is None and (schedule != "constant" or warmup):
            raise UsageError(
                "a schedule or a warm-up of the learning rate needs the length of the training",
                known="the training data is a stream: its length is unknown before it ends",
                try_="schedule = 'constant' and warmup = 0",
            )
        self._schedule, self._warmup, self._samples, self._normalizer = schedule, warmup, samples, normalizer
        self._moves = schedule != "constant" or warmup > 0 or normalizer.rule != "none"
        self._groups = groups_with_a_rate(optimizer)
        if self._moves and not self._groups:
            raise UsageError(
                "a schedule, a warm-up or lr_rule changes the learning rate, but the optimizer has no learning rate",
                known=f"no parameter group of {type(optimizer).__name__} has 'lr'",
                try_="schedule = 'constant', warmup = 0 and lr_rule = 'none'; or parameter groups with 'lr'",
            )
        for group in self._groups:
            # torch's own schedulers use that name; it goes into checkpoints with the group.
            group.setdefault("initial_lr", group["lr"])

    def set(self, done: int, step: int) -> float | None:
        """Set the rates for a step of `step` samples that begins after `done`: the rates at its middle, which are neither
        the zero before a warm-up nor the zero at the end. Return the rate of the first group; None: the optimizer has no rate."""
        if self._moves:
            progress = 0.0 if self._samples is None else (done + step / 2) / max(self._samples, 1)
            factor = self.factor(progress) * self._normalizer.factor(step)
            for group in self._groups:
                group["lr"] = _number(group["initial_lr"]) * factor
        return _number(self._groups[0]["lr"]) if self._groups else None

    def factor(self, progress: float) -> float:
        """Factor of the full rate when the share `progress` of the training is done."""
        if progress < self._warmup:
            return progress / self._warmup
        remaining = (1 - progress) / (1 - self._warmup)
        match self._schedule:
            case "constant":
                return 1.0
            case "linear":
                return max(0.0, remaining)
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * (1 - max(0.0, remaining))))


def _number(rate: object) -> float:
    if isinstance(rate, Tensor):
        return rate.item()
    if isinstance(rate, int | float):
        return float(rate)
    raise UsageError(f"the learning rate of a parameter group is {rate!r}, not a number", try_="a number, such as lr=1e-3")
