"""How fast a micro-batch trains, and under which allocator policy."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from batchcal.calibration.memory_model import UNBOUNDED
from batchcal.core.values import Record

ALIKE: Final = 1.015
"""Sizes within this of the fastest are as fast: no turn tells less."""
HEAVY_DATA: Final = 0.3
"""Of a step: where fetching its batch takes more, DataLoader workers are what there is to gain."""
RACED_POLICIES: Final = "raced-policies"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StepTime(Record):
    """What one micro-batch takes, as undisturbed as it was seen."""

    micro_batch: Annotated[int, Field(ge=1, le=2**31)]
    threads: Annotated[int, Field(ge=1)]
    """Intra-op threads."""
    step_s: Positive
    """Seconds of fetching, forward and backward."""
    fetch_s: NotNegative
    """Of these, what fetching the batch took, in the training process itself."""
    fetch_cpu_s: NotNegative
    """Of fetching, what it computed; the rest it waited."""
    update_s: Positive
    """Seconds of an optimizer step."""
    steps: Annotated[int, Field(ge=1)]
    """How many were timed."""
    foreign_share: Share | None = None
    """Of our processors: what others used meanwhile, where there was not enough for all. None: nobody could tell."""

    def samples_per_s(self, effective_batch: int) -> float:
        """Where one optimizer step is for `effective_batch` samples."""
        return 1 / (self.step_s / self.micro_batch + self.update_s / max(effective_batch, self.micro_batch))

    def or_better(self, other: StepTime) -> StepTime:
        """The two as one: what else runs on a machine only ever makes a step longer."""
        faster = self if self.step_s <= other.step_s else other
        return faster.model_copy(update={"update_s": min(self.update_s, other.update_s), "steps": self.steps + other.steps})


class Speeds(Record):
    """One allocator policy in the race of policies."""

    device: str
    allocator: str
    times: tuple[StepTime, ...]
    """By rising micro-batch."""
    rounds: int
    left: str
    """`slower`, `behind`, `failed`, or empty: it ran to the end."""
    why: str = ""
    disturbed: Annotated[int, Field(ge=0)] = 0
    """Sizes that others took our processors from while they were timed, each time they were tried again, too."""
    spread: NotNegative | None = None
    """How much slower the second best turn was than the best, as a share. None: there was but one."""

    @property
    def data_is_heavy(self) -> bool:
        """Whether fetching its batch took a large part of the fastest step. False where none was timed."""
        fastest = self.fastest(UNBOUNDED)
        return fastest is not None and fastest.fetch_s > HEAVY_DATA * fastest.step_s

    def fastest(self, effective_batch: int) -> StepTime | None:
        """The micro-batch of at most `effective_batch` samples that trains fastest, and of those that are as fast the smallest;
        None: none was timed."""
        rates = {time: time.samples_per_s(effective_batch) for time in self.times if time.micro_batch <= effective_batch}
        alike = [time for time, rate in rates.items() if rate * ALIKE >= max(rates.values())]
        return min(alike, key=lambda time: time.micro_batch, default=None)


class RacedPolicies(Record):
    """The race of allocator policies on one device, ended."""

    kind: Literal["raced-policies"] = RACED_POLICIES
    device: str
    allocator: str
    """The fastest; where none could be timed, the one that was to be used."""
    speeds: Annotated[tuple[Speeds, ...], Field(min_length=1)]
