"""Rules for growing and shrinking the micro-batch. Pure: memory use in, change of the size out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchcal.core.errors import UsageError
from batchcal.train.sizes.scheduler import GradientAccumulationScheduler


@dataclass(frozen=True)
class ControlSettings:
    """Settings of the controller. Shares refer to the current memory limit.

    Raises:
        UsageError: they contradict each other.
    """

    grow_below: float = 0.5
    grow_after: int = 10
    """Number of consecutive measured batches."""
    shrink_above: float = 0.85
    """Equals the budget with the default margin."""
    shrink_after: int = 3
    patience: int = 4
    """After a shortage of memory at a size, `patience` x `grow_after` batches pass before the size is tried again; twice as many
    after each further shortage."""

    def __post_init__(self) -> None:
        if not 0 <= self.grow_below < self.shrink_above <= 1:
            raise UsageError(
                f"grow_below {self.grow_below:.0%} and shrink_above {self.shrink_above:.0%} are not valid together",
                known="valid: 0 <= grow_below < shrink_above <= 1",
                try_="grow_below = 0.5, shrink_above = 0.85",
            )
        if min(self.grow_after, self.shrink_after, self.patience) < 1:
            raise UsageError(
                "grow_after, shrink_after and patience count batches: each must be at least 1", try_="grow_after = 10"
            )


@dataclass(frozen=True)
class Change:
    """Decision of the controller."""

    was: int
    now: int
    why: str


class BatchSizeController:
    """Controller that doubles the micro-batch if memory is plentiful and halves it if memory is short, without oscillation.

    The micro-batch grows if less than `grow_below` of the limit was used for `grow_after` consecutive batches, or if the next
    size is predicted to stay below `shrink_above` by a tenth of the limit. It never exceeds the plan. It shrinks if more than
    `shrink_above` was used for `shrink_after` consecutive batches. After a shortage, the size is avoided, longer each time.
    """

    def __init__(self, scheduler: GradientAccumulationScheduler, settings: ControlSettings) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._plenty = self._short = 0
        self._unsafe: int | None = None
        """Smallest size at which memory ran short."""
        self._rest = 0
        """Number of batches until this size may be tried again."""
        self._shortages = 0

    @property
    def in_doubt(self) -> bool:
        """True if the latest batch used too much memory, and the next batches decide."""
        return self._short > 0

    def after(self, used: float, predicted: Callable[[int], float]) -> Change | None:
        """Decide after a batch with a peak use of `used`, as a share of the limit.

        Args:
            predicted: micro-batch -> predicted use, as a share of the limit.
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
                f"{self._short} batches in a row used more than {settings.shrink_above:.0%} of the memory limit, "
                f"the last {used:.0%}"
            )
        if self._plenty < settings.grow_after or (self._unsafe is not None and following >= self._unsafe and self._rest):
            return None
        return self._change(
            following,
            f"a larger micro-batch was predicted to fit for {self._plenty} batches in a row: the last used {used:.0%} of the "
            f"limit, {ahead:.0%} are expected with {following}",
        )

    def ran_short(self, why: str, *, safe: int | None = None) -> Change | None:
        """React to a shortage at the current size: shrink to `safe`, or to the half. None: it is already one sample."""
        current = self._scheduler.micro_batch
        target = max(1, current // 2) if safe is None else max(1, min(safe, current))
        self._short = self._plenty = 0
        if target == current:
            return None
        self._unsafe = current if self._unsafe is None else min(self._unsafe, current)
        self._rest = self._settings.grow_after * self._settings.patience * 2**self._shortages
        self._shortages += 1
        return self._change(target, why)

    def _change(self, target: int, why: str) -> Change | None:
        """None: the planned sizes stay."""
        was = self._scheduler.micro_batch
        self._scheduler.set(target)
        self._plenty = self._short = 0
        return None if self._scheduler.micro_batch == was else Change(was=was, now=target, why=why)
