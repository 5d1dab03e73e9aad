"""Events of a running training. The log of a run keeps these names and fields: see `train.report.events`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from batchcal.core.progress import Event, Field, Fields, Notice

# Format history of the log of a run
# 1 - (0.2) first version
FORMAT: Final = 1
KIND: Final = "run"


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event):
    """A training begins. Epochs are counted from 0."""

    event_name = "training_started"
    about: Fields = field(default_factory=dict)
    """Fields from outside the training loop, such as `spec`."""
    kind: str = KIND
    format: int = FORMAT
    seed: int
    epochs: int | None
    """Total number. None: unknown."""
    epoch: int
    """First epoch of this process."""
    effective_batch: int
    micro_batch: int
    """Micro-batch of the plan."""
    accumulation_steps: int
    train_samples: int | None
    """None: a stream."""
    steps_per_epoch: int | None
    budget_bytes: int
    limit_bytes: int
    allocator: str
    device: str
    inexact: str | None
    """Reason why dividing a batch changes its gradient. None: it does not."""
    resumed_at_sample: int
    """Sample of the epoch at which the training resumed."""
    lr_rule: str
    batching: str
    loss_weights: str

    def fields(self) -> Fields:
        values = dict(vars(self))
        del values["about"]
        return {**self.about, **values}


@dataclass(frozen=True, kw_only=True)
class StepEnded(Event):
    """An optimizer step has ended. Steps are counted from 1."""

    event_name = "step"
    epoch: int
    step: int
    """Number within the epoch."""
    global_step: int
    """Number within the run."""
    samples: int
    samples_seen: int
    """Samples of the epoch so far."""
    loss: float | None
    """None: no sample had a weight."""
    grad_norm: float | None
    lr: float | None
    micro_batches: int
    micro_batch: int
    """Size of the largest micro-batch."""
    predicted_bytes: int | None
    peak_bytes: int | None
    """None: not measured in this step."""
    wall_s: float
    samples_per_s: float
    skipped: str | None
    """Reason why the optimizer skipped the step. None: it did not."""
    of_tasks: Mapping[str, float] = field(default_factory=dict)
    """Values of each task of a multi-task training: `loss_text`, `weight_text`, `grad_norm_text`."""

    def fields(self) -> Fields:
        values = dict(vars(self))
        del values["of_tasks"]
        return {**values, **self.of_tasks}


@dataclass(frozen=True, kw_only=True)
class Recovered(Event):
    """A micro-batch ran out of memory and was repeated."""

    event_name = "recovered"
    epoch: int
    step: int
    phase: str
    samples: int
    """Size of the micro-batch that failed."""
    action: str
    safe: int | None = None
    """Largest size from now on. None: unchanged."""
    lost_s: float | None = None
    why: str


@dataclass(frozen=True, kw_only=True)
class Resized(Event):
    """The largest allowed micro-batch has changed."""

    event_name = "resized"
    epoch: int
    step: int
    was: int
    now: int
    why: str


@dataclass(frozen=True, kw_only=True)
class EpochEnded(Event):
    event_name = "epoch_ended"
    of_steps: Fields = field(default_factory=dict)
    """Aggregates over the steps of this process: means, largest peaks, number of recoveries."""
    epoch: int
    loss: float
    steps: int
    samples_per_s: float
    skipped_steps: int | None
    evaluation: Mapping[str, float | None]
    """Values by metric. None: NaN or infinite."""

    def fields(self) -> Fields:
        values: dict[str, Field] = {
            **self.of_steps,
            "epoch": self.epoch,
            "loss": self.loss,
            "steps": self.steps,
            "samples_per_s": self.samples_per_s,
        }
        if self.skipped_steps:
            values["skipped_steps"] = self.skipped_steps
        return {**values, **{f"eval_{name}": value for name, value in self.evaluation.items()}}


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    event_name = "checkpoint_saved"
    path: str
    epoch: int
    samples_seen: int


@dataclass(frozen=True, kw_only=True)
class TrainingEnded(Event):
    event_name = "training_ended"
    samples_per_s: float
    peak_bytes: int
    wall_s: float
    stopped_early: bool
    stop_reason: str | None


TrainingEvent = TrainingStarted | StepEnded | Recovered | Resized | EpochEnded | CheckpointSaved | TrainingEnded | Notice
