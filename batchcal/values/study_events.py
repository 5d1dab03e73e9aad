"""Events of a running study, and their transfer from the process of a worker."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from batchcal.core.progress import Event, Field, Fields, Notice
from batchcal.values.calibration_events import CalibrationEvent


@dataclass(frozen=True, kw_only=True)
class StudyStarted(Event):
    event_name = "study_started"
    study: str
    trials: int
    done: int
    workers: int
    storage: str


@dataclass(frozen=True, kw_only=True)
class AcceleratorFound(Event):
    event_name = "accelerator"
    device: str
    name: str
    total_bytes: int
    available_bytes: int
    used_bytes: int


@dataclass(frozen=True, kw_only=True)
class ShapeStarted(Event):
    """The calibration of a shape of the model begins, for at most `seconds`."""

    event_name = "shape_started"
    shape: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ShapeCalibrated(Event):
    event_name = "shape_calibrated"
    shape: str
    parameters: int | None


@dataclass(frozen=True, kw_only=True)
class TrialStarted(Event):
    event_name = "trial_started"
    trial: int
    values: Mapping[str, Field]
    """Sampled values by name of the parameter."""

    def fields(self) -> Fields:
        return {"trial": self.trial, **self.values}


@dataclass(frozen=True, kw_only=True)
class TrialReached(Event):
    """A trial has finished `epochs` epochs with `value`."""

    event_name = "trial_reached"
    trial: int
    epochs: int
    value: float


@dataclass(frozen=True, kw_only=True)
class TrialEnded(Event):
    event_name = "trial_ended"
    trial: int
    state: str
    kind: str | None
    why: str | None
    value: float | None


@dataclass(frozen=True, kw_only=True)
class StudyWorkerDied(Event):
    event_name = "worker_died"
    worker: int
    how: str
    action: str


WorkerEvent = (
    AcceleratorFound | ShapeStarted | ShapeCalibrated | TrialStarted | TrialReached | TrialEnded | Notice | CalibrationEvent
)
"""Events of one worker."""


@dataclass(frozen=True)
class FromWorker:
    """An event of one of several workers."""

    event: WorkerEvent
    worker: int

    @property
    def event_name(self) -> str:
        return self.event.event_name

    def fields(self) -> Fields:
        return {**self.event.fields(), "worker": self.worker}


StudyEvent = StudyStarted | StudyWorkerDied | WorkerEvent | FromWorker


def written(event: WorkerEvent) -> tuple[str, dict[str, object]]:
    """Name and values of `event`; `read_back` restores it in another process."""
    return event.event_name, dict(vars(event))


def read_back(name: str, values: Mapping[str, object]) -> WorkerEvent | None:
    """The event with this name and these values. None: invalid."""
    reader = _reader_of(name)
    try:
        return None if reader is None else reader.validate_python(values)
    except ValidationError:
        return None


@functools.cache
def _reader_of(name: str) -> TypeAdapter[WorkerEvent] | None:
    return next((TypeAdapter(kind) for kind in get_args(WorkerEvent) if kind.event_name == name), None)
