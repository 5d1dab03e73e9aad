"""When the micro-batch grows and when it shrinks. Pure: told what was used, answers what changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchcal.core.errors import UsageError
from batchcal.train.sizes.scheduler import GradientAccumulationScheduler


@dataclass(frozen=True)
class ControlSettings:
    """Shares are of the memory limit that holds at that moment.

    Raises:
        UsageError: they contradict each other.
    """

    grow_below: float = 0.5
    grow_after: int = 10
    """Measured batches in a row."""
    shrink_above: float = 0.85
    """With the default margin this is the budget."""
    shrink_after: int = 3
    patience: int = 4
    """After memory ran short at a size, that many times `grow_after` batches pass before it is tried again; twice as many after
    each further time."""

    def __post_init__(self) -> None:
        if not 0 <= self.grow_below < self.shrink_above <= 1:
            raise UsageError(
                f"growing below {self.grow_below:.0%} and shrinking above {self.shrink_above:.0%} do not go together",
                try_="grow_below = 0.5, shrink_above = 0.85",
            )
        if min(self.grow_after, self.shrink_after, self.patience) < 1:
            raise UsageError("grow_after, shrink_after and patience count batches: each is at least 1", try_="grow_after = 10")


@dataclass(frozen=True)
class Change:
    """A decision."""

    was: int
    now: int
    why: str


class BatchSizeController:
    """Doubles the micro-batch while memory is plenty, halves it when it is short, and does not swing between the two.

    It grows when less than `grow_below` of the limit was used for `grow_after` batches in a row, or when the next size is
    predicted to stay clear of `shrink_above` by a tenth; never above the plan. It shrinks when more than `shrink_above` was used
    for `shrink_after` batches in a row. The size at which memory ran short is left alone for a while, longer each time.
    """

    def __init__(self, scheduler: GradientAccumulationScheduler, settings: ControlSettings) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._plenty = self._short = 0
        self._unsafe: int | None = None
        """The smallest size at which memory ran short."""
        self._rest = 0
        """Batches until it may be tried again."""
        self._shortages = 0

    @property
    def in_doubt(self) -> bool:
        """Whether the latest batch used too much, and the ones after it decide."""
        return self._short > 0

    def after(self, used: float, predicted: Callable[[int], float]) -> Change | None:
        """A batch has run and `used` of the limit was in use at its peak.

        Args:
            predicted: micro-batch -> share of the limit that is in use with it.
        """
        self._rest = max(0, self._rest - 1)
        settings, scheduler = self._settings, self._scheduler
        following = min(scheduler.ceiling, 2 * scheduler.micro_batch)
        larger = following > scheduler.micro_batch
        ahead = predicted(following) if larger else 1.0
        roomy = ahead < settings.shrink_above and (used < settings.grow_below or ahead < settings.shrink_above - 0.1)
        self._plenty = self._plenty + 1 if larger and roomy and used < settings.shrink_above else 0
        self._short = self._short + 1 if used > settings.shrink_above else 0
        if self._short >= settings.shrink_after:
            return self.ran_short(
                f"{used:.0%} of the memory limit was used, more than {settings.shrink_above:.0%}, {self._short} batches in a row"
            )
        if self._plenty < settings.grow_after or (self._unsafe is not None and following >= self._unsafe and self._rest):
            return None
        return self._change(
            following,
            f"{used:.0%} of the memory limit is used, {ahead:.0%} expected with {following}, {self._plenty} batches in a row",
        )

    def ran_short(self, why: str, *, safe: int | None = None) -> Change | None:
        """Memory ran short at the present size: go down to `safe`, or to the half. None: it is one sample already."""
        at = self._scheduler.micro_batch
        target = max(1, at // 2) if safe is None else max(1, min(safe, at))
        self._short = self._plenty = 0
        if target == at:
            return None
        self._unsafe = at if self._unsafe is None else min(self._unsafe, at)
        self._rest = self._settings.grow_after * self._settings.patience * 2**self._shortages
        self._shortages += 1
        return self._change(target, why)

    def _change(self, target: int, why: str) -> Change | None:
        """None: the planned sizes stay."""
        was = self._scheduler.micro_batch
        self._scheduler.set(target)
        self._plenty = self._short = 0
        return None if self._scheduler.micro_batch == was else Change(was=was, now=target, why=why)
