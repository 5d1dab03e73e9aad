"""A run as read from its log: its settings, steps, events and end."""

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
"""`stopped`: by an error or a signal. `not ended`: it is still running, or was killed."""


MOST_S: Final = 1e10
"""Seconds: three hundred years. Longer times are invalid."""
Seconds = Annotated[float, Field(ge=0, le=MOST_S, allow_inf_nan=False)]


class _Event(Record):
    """Tolerant base of events: fields of later versions are kept, missing fields are None, and a loss may be NaN."""

    model_config = ConfigDict(allow_inf_nan=True)

    at: Seconds = 0.0
    """Seconds since the process began to train."""

    def named(self, prefix: str) -> dict[str, float]:
        """Return the numbers of the fields that begin with `prefix`, such as `eval_`, by the rest of their names."""
        extra = self.model_extra or {}
        return {key[len(prefix) :]: float(value) for key, value in extra.items() if key.startswith(prefix) and _is_number(value)}


class LoggedStart(_Event):
    spec: str = "?"
    seed: int | None = None
    epochs: int | None = None
    """Total number."""
    epoch: int = 0
    """First epoch, counted from 0."""
    effective_batch: int | None = None
    micro_batch: int | None = None
    """Of the plan."""
    accumulation_steps: int | None = None
    train_samples: int | None = None
    """None: a stream, or unknown."""
    budget_bytes: int | None = None
    limit_bytes: int | None = None
    allocator: str | None = None
    device: str | None = None
    lr_rule: str | None = None
    steps_per_epoch: int | None = None
    resumed_at_sample: int = 0
    batchcal: str | None = None
    time: AwareDatetime | None = None


class LoggedRecovery(_Event):
    """A lack of memory that cost only one micro-batch."""

    epoch: int | None = None
    step: int | None = None
    global_step: int = 0
    """Step at which a view marks it: the one that continued afterwards."""
    phase: str = ""
    samples: int | None = None
    """Size that failed."""
    action: str = ""
    safe: int | None = None
    """Largest size from now on."""
    lost_s: Seconds | None = None
    why: str = ""


class LoggedResize(_Event):
    """The allowed micro-batch changed."""

    epoch: int | None = None
    step: int | None = None
    global_step: int = 0
    was: int | None = None
    now: int | None = None
    why: str = ""


class LoggedEpoch(_Event):
    epoch: int
    """Number, counted from 0."""
    global_step: int = 0
    """Last step of the epoch."""
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
        """Losses by task."""
        return self.named(LOSS)


class LoggedCheckpoint(_Event):
    path: str = ""
    epoch: int | None = None
    samples_seen: int | None = None
    global_step: int = 0


class LoggedNotice(_Event):
    text: str = ""
    global_step: int = 0


class LoggedEnd(_Event):
    samples_per_s: float | None = None
    peak_bytes: int | None = None
    wall_s: float | None = None
    stopped_early: bool = False
    stop_reason: str | None = None


class Stopped(_Event):
    """The run was stopped by an error or a signal."""

    global_step: int = 0
    error: str = ""
    why: str = ""


Happening = LoggedStart | LoggedRecovery | LoggedResize | LoggedEpoch | LoggedCheckpoint | LoggedNotice | Stopped
"""Events other than steps and the end."""


@dataclass(frozen=True)
class PredictionError:
    """Error of predicted peaks, over the steps with a prediction and a measurement."""

    steps: int
    median: float
    """Median of |predicted - measured| / measured."""
    p95: float
    exceeded: int
    """Number of steps with a measured peak above the prediction."""
    worst_under: float
    """Largest share of a measured peak that was not predicted."""


@dataclass(frozen=True)
class Run:
    path: Path
    written_at: datetime
    """Time of the last line."""
    started: LoggedStart
    resumes: tuple[LoggedStart, ...]
    """Later processes of the same run, each from a checkpoint on."""
    steps: Steps
    happenings: tuple[Happening, ...]
    """In order, including the resumes."""
    ended: LoggedEnd | Stopped | None
    """End of the last process."""
    wall_s: float
    """Total of all its processes."""
    repeated_steps: int = 0
    """Number of steps after the checkpoint from which a later process began. They were run twice."""
    remarks: tuple[str, ...] = ()
    """Remarks on unreadable parts of the file."""

    @property
    def status(self) -> Status:
        match self.ended:
            case None:
                return "not ended"
            case Stopped():
                return "stopped"
            case LoggedEnd():
                return "stopped early" if self.ended.stopped_early else "ended"

    @property
    def latest(self) -> LoggedStart:
        """Start of the latest process, with its plan and machine."""
        return self.resumes[-1] if self.resumes else self.started

    @cached_property
    def epochs(self) -> tuple[LoggedEpoch, ...]:
        """Epochs that ended. A repeated epoch counts once."""
        last = {event.epoch: event for event in self.happenings if isinstance(event, LoggedEpoch)}
        return tuple(last[epoch] for epoch in sorted(last))

    @cached_property
    def recoveries(self) -> tuple[LoggedRecovery, ...]:
        return tuple(event for event in self.happenings if isinstance(event, LoggedRecovery))

    @cached_property
    def changes(self) -> tuple[LoggedResize, ...]:
        return tuple(event for event in self.happenings if isinstance(event, LoggedResize))

    @cached_property
    def peak_bytes(self) -> int | None:
        """Largest measured peak."""
        reported = [self.ended.peak_bytes] if isinstance(self.ended, LoggedEnd) and self.ended.peak_bytes is not None else []
        measured = [value for value in self.steps.column("peak_bytes") if math.isfinite(value)]
        return max([*reported, int(max(measured))]) if measured else max(reported, default=None)

    @cached_property
    def samples_per_s(self) -> float | None:
        """Samples per second over all steps with samples and time."""
        pairs = zip(self.steps.column("samples"), self.steps.column("wall_s"), strict=False)
        valid = [(samples, wall_s) for samples, wall_s in pairs if math.isfinite(samples) and math.isfinite(wall_s)]
        wall_s = sum(wall_s for _, wall_s in valid)
        if wall_s > 0:
            return sum(samples for samples, _ in valid) / wall_s
        return self.ended.samples_per_s if isinstance(self.ended, LoggedEnd) else None

    @cached_property
    def prediction(self) -> PredictionError | None:
        """None: no step has both values."""
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
