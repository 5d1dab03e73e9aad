"""A run as it is read back from its log: what it was to be, its steps, what happened on the way, how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from batchcal.core.values import Record
from batchcal.train.report.events import EVAL, LOSS
from batchcal.train.report.steps import Steps

Status = Literal["ended", "stopped early", "stopped", "not ended"]
"""`stopped`: by an error or a signal. `not ended`: it runs still, or was killed."""


MOST_S: Final = 1e10
"""Three hundred years: a time that is longer is no time."""
Seconds = Annotated[float, Field(ge=0, le=MOST_S, allow_inf_nan=False)]


class _Event(Record):
    """Tolerant: what a later version adds survives, what is not told is None, and a loss may be NaN."""

    model_config = ConfigDict(allow_inf_nan=True)

    at: Seconds = 0.0
    """Seconds since the process began to train."""

    def named(self, prefix: str) -> dict[str, float]:
        """`eval_` -> the numbers of the fields that begin so, by what follows."""
        extra = self.model_extra or {}
        return {key[len(prefix) :]: float(value) for key, value in extra.items() if key.startswith(prefix) and _is_number(value)}


class Started(_Event):
    spec: str = "?"
    seed: int | None = None
    epochs: int | None = None
    """In all."""
    epoch: int = 0
    """Where it begins, from 0."""
    effective_batch: int | None = None
    micro_batch: int | None = None
    """Of the plan."""
    accumulation_steps: int | None = None
    train_samples: int | None = None
    """None: a stream, or not told."""
    budget_bytes: int | None = None
    limit_bytes: int | None = None
    allocator: str | None = None
    device: str | None = None
    lr_rule: str | None = None
    steps_per_epoch: int | None = None
    resumed_at_sample: int = 0
    batchcal: str | None = None
    time: AwareDatetime | None = None


class Recovered(_Event):
    """Out of memory that cost a micro-batch and no more."""

    epoch: int | None = None
    step: int | None = None
    global_step: int = 0
    """Where a view marks it: the step that went on behind it."""
    phase: str = ""
    samples: int | None = None
    """The size that failed."""
    action: str = ""
    safe: int | None = None
    """Largest size from now on."""
    lost_s: Seconds | None = None
    why: str = ""


class Resized(_Event):
    """The allowed micro-batch changed."""

    epoch: int | None = None
    step: int | None = None
    global_step: int = 0
    was: int | None = None
    now: int | None = None
    why: str = ""


class EpochEnded(_Event):
    epoch: int
    """From 0."""
    global_step: int = 0
    """Its last."""
    loss: float | None = None
    steps: int | None = None
    samples_per_s: float | None = None
    predicted_bytes: int | None = None
    peak_bytes: int | None = None
    recoveries: int | None = None
    skipped_steps: int | None = None

    @property
    def evaluation(self) -> dict[str, float]:
        return self.named(EVAL)

    @property
    def losses(self) -> dict[str, float]:
        """By task."""
        return self.named(LOSS)


class CheckpointSaved(_Event):
    path: str = ""
    epoch: int | None = None
    samples_seen: int | None = None
    global_step: int = 0


class Notice(_Event):
    text: str = ""
    global_step: int = 0


class Ended(_Event):
    samples_per_s: float | None = None
    peak_bytes: int | None = None
    wall_s: float | None = None
    stopped_early: bool = False
    stop_reason: str | None = None


class Stopped(_Event):
    """By an error or a signal."""

    global_step: int = 0
    error: str = ""
    why: str = ""


Happening = Started | Recovered | Resized | EpochEnded | CheckpointSaved | Notice | Stopped
"""What is no step and not the end."""


@dataclass(frozen=True)
class PredictionError:
    """Predicted against measured, over the steps that have both."""

    steps: int
    median: float
    """Of |predicted - measured| / measured."""
    p95: float
    exceeded: int
    """Steps whose measured peak was above the prediction."""
    worst_under: float
    """The largest share of a measured peak that was not predicted."""


@dataclass(frozen=True)
class Run:
    path: Path
    written_at: datetime
    """When the last line came."""
    started: Started
    resumes: tuple[Started, ...]
    """Later processes of the same run, each from where a checkpoint was."""
    steps: Steps
    happenings: tuple[Happening, ...]
    """In order; the resumes stand among them."""
    ended: Ended | Stopped | None
    """How the last process ended."""
    wall_s: float
    """Of all its processes together."""
    repeated_steps: int = 0
    """Done after the checkpoint that a later process began from, and so done again."""
    remarks: tuple[str, ...] = ()
    """What of the file could not be read."""

    @property
    def status(self) -> Status:
        match self.ended:
            case None:
                return "not ended"
            case Stopped():
                return "stopped"
            case Ended():
                return "stopped early" if self.ended.stopped_early else "ended"

    @property
    def latest(self) -> Started:
        """The process that wrote last, and what it knew of plan and machine."""
        return self.resumes[-1] if self.resumes else self.started

    @cached_property
    def epochs(self) -> tuple[EpochEnded, ...]:
        """Those that ended; one that was done again counts once."""
        last = {one.epoch: one for one in self.happenings if isinstance(one, EpochEnded)}
        return tuple(last[epoch] for epoch in sorted(last))

    @cached_property
    def recoveries(self) -> tuple[Recovered, ...]:
        return tuple(one for one in self.happenings if isinstance(one, Recovered))

    @cached_property
    def changes(self) -> tuple[Resized, ...]:
        return tuple(one for one in self.happenings if isinstance(one, Resized))

    @cached_property
    def peak_bytes(self) -> int | None:
        """Largest that was measured."""
        told = [self.ended.peak_bytes] if isinstance(self.ended, Ended) and self.ended.peak_bytes is not None else []
        measured = [value for value in self.steps.column("peak_bytes") if math.isfinite(value)]
        return max([*told, int(max(measured))]) if measured else max(told, default=None)

    @cached_property
    def samples_per_s(self) -> float | None:
        """Over all steps that say both samples and time."""
        pairs = zip(self.steps.column("samples"), self.steps.column("wall_s"), strict=False)
        both = [(samples, wall_s) for samples, wall_s in pairs if math.isfinite(samples) and math.isfinite(wall_s)]
        wall_s = sum(wall_s for _, wall_s in both)
        if wall_s > 0:
            return sum(samples for samples, _ in both) / wall_s
        return self.ended.samples_per_s if isinstance(self.ended, Ended) else None

    @cached_property
    def prediction(self) -> PredictionError | None:
        """None: no step has both."""
        pairs = zip(self.steps.column("predicted_bytes"), self.steps.column("peak_bytes"), strict=False)
        errors = sorted(predicted / peak - 1 for predicted, peak in pairs if math.isfinite(predicted) and peak > 0)
        if not errors:
            return None
        sizes = sorted(abs(error) for error in errors)
        return PredictionError(
            steps=len(errors),
            median=sizes[len(sizes) // 2],
            p95=sizes[min(round(0.95 * len(sizes)), len(sizes) - 1)],
            exceeded=sum(error < 0 for error in errors),
            worst_under=max(-errors[0], 0.0),
        )


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
