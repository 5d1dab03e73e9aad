"""Events by their names and some of their fields, as tests of what listens need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import get_args

from batchcal.core.progress import Field
from batchcal.values.calibration_events import CalibrationEvent
from batchcal.values.study_events import FromWorker, StudyEvent, StudyStarted, StudyWorkerDied, WorkerEvent
from batchcal.values.training_events import EpochEnded, StepEnded, TrainingEvent, TrainingStarted


def calibration_event(name: str, told: Mapping[str, Field]) -> CalibrationEvent:
    """What is not `told` is 0, empty or None."""
    kind = next(kind for kind in get_args(CalibrationEvent) if kind.event_name == name)
    event: CalibrationEvent = kind(**_filled(kind, told))
    return event


def training_event(name: str, told: Mapping[str, Field], *, unknown: bool = False) -> TrainingEvent:
    """The same for a training. Losses and weights of tasks, metrics and unknown fields are passed by their keys.

    Args:
        unknown: fields that are missing in `told` are None, whatever their type, so that a log omits them.
    """
    kind = next(kind for kind in get_args(TrainingEvent) if kind.event_name == name)
    own = {one.name for one in fields(kind)}
    others = {key: value for key, value in told.items() if key not in own}
    values = _filled(kind, {key: value for key, value in told.items() if key in own}, unknown=unknown)
    if kind is StepEnded:
        values["of_tasks"] = others
    elif kind is TrainingStarted:
        values["about"] = others
    elif kind is EpochEnded:
        values["evaluation"] = {key.removeprefix("eval_"): value for key, value in others.items() if key.startswith("eval_")}
        values["of_steps"] = {key: value for key, value in others.items() if not key.startswith("eval_")}
    event: TrainingEvent = kind(**values)
    return event


def study_event(name: str, told: Mapping[str, Field]) -> StudyEvent:
    """The same for a study. With `worker`, the event comes from that worker."""
    kind = next(kind for kind in (StudyStarted, StudyWorkerDied, *get_args(WorkerEvent)) if kind.event_name == name)
    values = dict(told)
    worker = None if kind is StudyWorkerDied else values.pop("worker", None)
    event = kind(**_filled(kind, values))
    return FromWorker(event, worker) if isinstance(worker, int) else event


def _filled(kind: type, told: Mapping[str, Field], *, unknown: bool = False) -> dict[str, object]:
    """`told`, and something for each field that has no default."""
    needed = [one for one in fields(kind) if one.default is one.default_factory is MISSING]
    return {one.name: _nothing(str(one.type), unknown=unknown) for one in needed} | dict(told)


def _nothing(annotation: str, *, unknown: bool) -> object:
    if annotation.startswith("Mapping"):
        return {}
    if unknown or annotation.endswith("| None"):
        return None
    return {"str": "", "int": 0, "float": 0.0, "bool": False}[annotation]
