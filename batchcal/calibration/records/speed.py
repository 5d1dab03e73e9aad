"""Training speed of micro-batches, by allocator policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from batchcal.calibration.records.memory_model import UNBOUNDED
from batchcal.core.values import Record

ALIKE: Final = 1.015
"""Sizes within this factor of the fastest count as equally fast: a turn does not resolve less."""
NO_FASTER: Final = 1.03
"""If no larger size can be faster than the fastest by more than this factor, larger sizes are not worth a probe: a race does not
resolve less (`measure.race.race.TIE`)."""
FAR_APART: Final = 16
"""Least ratio of the largest to the smallest timed size. With a noise of 5 %, times of 16 and 32 samples ended a third of the
searches that had 5 % to gain."""
TURNS_DIFFER: Final = 0.15
"""Share by which turns of one setting differ without other load: the standard deviation of 12 turns of a small CNN, with three
allocators and sizes, was 6 to 15 %."""
MUCH_SLOWER: Final = 1.5
"""Factor by which one turn shows that a size is slower: the same turn took 1.4 times as long a few seconds later."""
HEAVY_DATA: Final = 0.3
"""Share of a step. If fetching its batch takes more, the possible gain is in DataLoader workers."""
RACED_POLICIES: Final = "raced-policies"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StepTime(Record):
    """Time of one micro-batch, from its least disturbed measurement."""

    micro_batch: Annotated[int, Field(ge=1, le=2**31)]
    threads: Annotated[int, Field(ge=1)]
    """Intra-op threads."""
    step_s: Positive
    """Seconds of fetching, forward and backward."""
    fetch_s: NotNegative
    """Part of `step_s` for fetching the batch, in the training process itself."""
    fetch_cpu_s: NotNegative
    """Part of `fetch_s` for computing. The rest is waiting."""
    update_s: Positive
    """Seconds of an optimizer step."""
    steps: Annotated[int, Field(ge=1)]
    """Number of timed steps."""
    foreign_share: Share | None = None
    """Share of our processors that others used meanwhile, if there was not enough for all. None: unknown."""

    def samples_per_s(self, effective_batch: int) -> float:
        """Samples/s if one optimizer step is for `effective_batch` samples."""
        return 1 / (self.step_s / self.micro_batch + self.update_s / max(effective_batch, self.micro_batch))

    def or_better(self, other: StepTime) -> StepTime:
        """Merge two timings into the shorter times: other load on a machine only makes a step longer."""
        faster = self if self.step_s <= other.step_s else other
        return faster.model_copy(update={"update_s": min(self.update_s, other.update_s), "steps": self.steps + other.steps})


class Speeds(Record):
    """Result of one allocator policy in the race of policies."""

    device: str
    allocator: str
    times: tuple[StepTime, ...]
    """In ascending order of micro-batch."""
    rounds: int
    left: str
    """`slower`, `behind` or `failed`. Empty: it ran to the end."""
    why: str = ""
    disturbed: Annotated[int, Field(ge=0)] = 0
    """Number of sizes for which others used our processors during the timing and during each repetition."""
    spread: NotNegative | None = None
    """Additional time of the second best turn relative to the best, as a share. None: there was only one turn."""

    @property
    def data_is_heavy(self) -> bool:
        """True if fetching its batch took a large part of the fastest step. False if no step was timed."""
        fastest = self.fastest(UNBOUNDED)
        return fastest is not None and fastest.fetch_s > HEAVY_DATA * fastest.step_s

    @property
    def largest_useful(self) -> int | None:
        """The largest timed size, if no larger one can be faster by more than `NO_FASTER`. None: larger ones may be.

        A step takes a constant time and a time per sample. No sample of a larger size takes less than the latter. If the largest
        timed size is clearly slower than a smaller one, speed falls with the size (padding, caches)."""
        if len(self.times) < 2 or self.data_is_heavy:  # workers may hide the time of fetching
            return None
        largest = self.times[-1]
        fastest_sample_s = min(time.step_s / time.micro_batch for time in self.times)
        if largest.step_s / largest.micro_batch > fastest_sample_s * MUCH_SLOWER:
            return largest.micro_batch
        far_apart = largest.micro_batch >= self.times[0].micro_batch * FAR_APART
        sample_s = _sample_s(self.times) if far_apart else None
        return largest.micro_batch if sample_s is not None and fastest_sample_s <= sample_s * NO_FASTER else None

    def fastest(self, effective_batch: int) -> StepTime | None:
        """Return the fastest micro-batch of at most `effective_batch` samples, the smallest of equally fast ones. None: none was
        timed."""
        rates = {time: time.samples_per_s(effective_batch) for time in self.times if time.micro_batch <= effective_batch}
        alike = [time for time, rate in rates.items() if rate * ALIKE >= max(rates.values())]
        return min(alike, key=lambda time: time.micro_batch, default=None)


def _sample_s(times: Sequence[StepTime]) -> float | None:
    """Seconds per sample in `constant + seconds x micro-batch`, fitted to the times of at least two sizes with the least relative
    error. None: the times do not determine it."""
    # The relative errors are constant x x + seconds x y - 1.
    xs, ys = [1 / time.step_s for time in times], [time.micro_batch / time.step_s for time in times]
    xx, xy, yy = _sumprod(xs, xs), _sumprod(xs, ys), _sumprod(ys, ys)
    constant = (sum(xs) * yy - sum(ys) * xy) / (xx * yy - xy * xy)
    sample_s = (sum(ys) - max(constant, 0.0) * xy) / yy
    return sample_s if sample_s > 0 else None


def _sumprod(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Sum of the products. `math.sumprod` is new in Python 3.12."""
    return sum(x * y for x, y in zip(xs, ys, strict=True))


class RacedPolicies(Record):
    """A finished race of allocator policies on one device."""

    kind: Literal["raced-policies"] = RACED_POLICIES
    device: str
    allocator: str
    """The fastest policy. If none could be timed, the policy that was to be used."""
    speeds: Annotated[tuple[Speeds, ...], Field(min_length=1)]
