"""Events: what logs and lines keep of them, and that they come out of another process as they went in."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from batchcal.core.progress import Note, Notice, Output
from batchcal.values.calibration_events import Attributed, CalibrationEvent
from batchcal.values.study_events import FromWorker, StudyStarted, StudyWorkerDied, TrialStarted, WorkerEvent, read_back, written
from batchcal.values.training_events import EpochEnded, StepEnded, TrainingEvent
from tests.support.events import calibration_event, study_event, training_event

KINDS = tuple(get_args(WorkerEvent))
NAMES = [kind.event_name for kind in KINDS]


def test_event_names_are_the_documented_names() -> None:
    calibrating = {kind.event_name for kind in get_args(CalibrationEvent)}
    training = {kind.event_name for kind in get_args(TrainingEvent)}

    assert calibrating == {
        *("calibrate_started", "phase", "probe_started", "probe_ended", "probe_kept", "best", "lap_ended", "race_kept"),
        *("size_ended", "finalist_ended", "rehearsed", "attributed", "shape_traced", "calibrate_ended", "note", "output"),
    }
    assert training == {
        *("training_started", "step", "recovered", "resized", "epoch_ended", "checkpoint_saved", "training_ended", "notice"),
    }
    assert len(NAMES) == len(set(NAMES)), "a name is read back as one event"


def test_step_events_contain_the_values_of_each_task() -> None:
    step = training_event("step", {"loss": 0.5, "loss_text": 0.2, "weight_text": 1.5})

    assert isinstance(step, StepEnded)
    assert list(step.fields())[-2:] == ["loss_text", "weight_text"]
    assert "of_tasks" not in step.fields()


def test_values_of_an_epoch_event_override_values_of_its_steps() -> None:
    ended = EpochEnded(
        of_steps={"loss": 9.0, "peak_bytes": 80},
        epoch=2,
        loss=0.5,
        steps=10,
        samples_per_s=100.0,
        skipped_steps=None,
        evaluation={"accuracy": 0.9, "perplexity": None},
    )

    assert ended.fields() == {
        "loss": 0.5,
        "peak_bytes": 80,
        "epoch": 2,
        "steps": 10,
        "samples_per_s": 100.0,
        "eval_accuracy": 0.9,
        "eval_perplexity": None,
    }


def test_a_training_started_event_keeps_the_values_of_the_loop() -> None:
    started = training_event("training_started", {"spec": "train.py:task", "seed": 3})

    assert started.fields()["spec"] == "train.py:task"
    assert (started.fields()["kind"], started.fields()["format"], started.fields()["seed"]) == ("run", 1, 3)


def test_attribution_and_trial_values_are_top_level_event_fields() -> None:
    attributed = Attributed(gain=2.0, samples_per_s={"allocator": 50.0, "num_workers": None})
    trial = TrialStarted(trial=4, values={"width": 64})

    assert attributed.fields() == {"gain": 2.0, "allocator": 50.0, "num_workers": None}
    assert trial.fields() == {"trial": 4, "width": 64}


def test_an_event_of_a_worker_includes_its_worker_number() -> None:
    told = study_event("trial_ended", {"trial": 1, "state": "complete", "value": 0.5, "worker": 3})

    assert isinstance(told, FromWorker)
    assert told.event_name == "trial_ended"
    assert told.fields()["worker"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_worker_event_is_unchanged_by_a_json_round_trip(name: str) -> None:
    values = {"values": {"width": 64, "rate": 1e-3, "name": "a b"}} if name == "trial_started" else {}
    kind = KINDS[NAMES.index(name)]
    event = kind(**values, trial=7) if values else study_event(name, {})
    assert not isinstance(event, FromWorker | StudyStarted | StudyWorkerDied)

    line = json.dumps(written(event))

    assert read_back(*json.loads(line)) == event


def test_a_line_that_is_not_an_event_is_ignored() -> None:
    assert read_back("nonsense", {}) is None
    assert read_back("trial_reached", {"trial": "many"}) is None
    assert read_back("note", {}) is None
    assert read_back("note", {"text": "x", "of": "a later version"}) == Note("x")


def test_probe_ended_events_contain_all_fields_of_the_log_line() -> None:
    probe = calibration_event("probe_ended", {"batch": 8, "outcome": "fits"})

    assert list(probe.fields()) == [
        *("sequence", "phase", "mode", "device", "allocator", "batch", "outcome", "detail"),
        *("peak_bytes", "predicted_bytes", "budget_bytes", "samples_per_s", "wall_s"),
    ]
    assert Notice("x").fields() == Output("x").fields() == {"text": "x"}
