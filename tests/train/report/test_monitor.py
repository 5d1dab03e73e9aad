"""One hears, all are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.core.clock import ManualClock
from batchcal.core.errors import Interrupted, UserCodeError
from batchcal.core.progress import Fields, Named, Recorded
from batchcal.train.report.monitor import TrainingMonitor
from batchcal.train.report.read import read_run
from batchcal.train.report.run import Stopped
from tests.support.events import training_event
from tests.support.runs import STARTED_AT, a_start, a_training, tell


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error, self.times = error, 0

    def event(self, event: Named, /) -> None:
        self.times += 1
        raise self.error


class Sink:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)


def test_the_view_the_log_and_the_sinks_receive_all_events(tmp_path: Path) -> None:
    view, sink = Recorded(), Sink()
    with TrainingMonitor(tmp_path / "run.jsonl", sinks=[sink], view=view, about={"spec": "mine:task"}) as monitor:
        tell(monitor, a_training(epochs=2, per_epoch=5, trouble=False))
    names = [name for name, _ in view.events]
    assert names.count("step") == 10
    assert sink.steps[0] == 1
    run = read_run(tmp_path)
    assert (len(run.steps), run.status) == (10, "ended")
    assert view.events[0][1]["spec"] == "batchcal.workload.examples.multiimage:task", "what the loop says holds"


def test_fields_from_the_caller_are_added_to_the_log_header(tmp_path: Path) -> None:
    with TrainingMonitor(tmp_path / "run.jsonl", about={"spec": "mine:task"}) as monitor:
        monitor.event(training_event("training_started", {"epochs": 1}))
    assert read_run(tmp_path).started.spec == "mine:task"


def test_an_epoch_event_contains_the_totals_of_its_steps() -> None:
    view = Recorded()
    monitor = TrainingMonitor(None, view=view)
    monitor.event(training_event("training_started", a_start()))
    for samples, loss, peak in ((100, 1.0, 50), (300, 2.0, 90)):
        told: Fields = {"samples": samples, "loss": loss, "loss_a": loss, "predicted_bytes": 80, "peak_bytes": peak, "lr": 0.5}
        monitor.event(training_event("step", told))
    monitor.event(training_event("recovered", {"lost_s": 0.25}))
    monitor.event(training_event("resized", {"was": 8, "now": 4}))
    monitor.event(training_event("epoch_ended", {"epoch": 0, "loss": 1.7}))
    epoch = view.events[-1][1]
    assert epoch["loss"] == 1.7, "the loop knows the weights"
    assert epoch["loss_a"] == pytest.approx(1.75)
    assert (epoch["predicted_bytes"], epoch["peak_bytes"], epoch["lr"]) == (80, 90, 0.5)
    assert (epoch["recoveries"], epoch["resizes"], epoch["lost_s"]) == (1, 1, 0.25)
    assert epoch["prediction_error"] == pytest.approx((30 / 50 + 10 / 90) / 2)
    assert epoch["worst_under"] == pytest.approx(10 / 90)
    monitor.event(training_event("epoch_ended", {"epoch": 1}))
    assert "loss_a" not in view.events[-1][1], "each epoch has its own"
    totals = monitor.totals()
    assert (totals.steps, totals.samples, totals.recoveries, totals.changes, totals.peak_bytes) == (2, 400, 1, 1, 90)


def test_totals_include_the_current_epoch() -> None:
    monitor = TrainingMonitor(None)
    assert monitor.totals().prediction_error is None
    tell(monitor, iter([*a_training(epochs=2, per_epoch=4)][:8]))
    assert monitor.totals().steps == monitor.totals().predicted_steps
    assert 0 < monitor.totals().steps < 8


def test_a_failing_view_is_no_longer_called_and_the_log_continues(tmp_path: Path) -> None:
    view = Broken(ValueError("I/O operation on closed file"))
    with TrainingMonitor(tmp_path / "run.jsonl", view=view) as monitor:
        tell(monitor, a_training(epochs=1, per_epoch=3, trouble=False))
    assert view.times == 1
    assert len(read_run(tmp_path).steps) == 3


def test_a_signal_during_drawing_still_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), TrainingMonitor(tmp_path / "run.jsonl", view=Broken(Interrupted(2))) as monitor:
        monitor.event(training_event("training_started", a_start()))


def test_a_failing_logger_is_reported_in_the_view_and_the_log(tmp_path: Path) -> None:
    class Failing:
        def log(self, values: dict[str, float], step: int) -> None:
            raise RuntimeError("no key")

    view = Recorded()
    with TrainingMonitor(tmp_path / "run.jsonl", sinks=[Failing()], view=view) as monitor:
        tell(monitor, a_training(epochs=1, per_epoch=2, trouble=False))
    notices = [str(fields["text"]) for name, fields in view.events if name == "notice"]
    assert notices[0] == "the logger Failing failed: RuntimeError: no key; training continues"
    assert "notice" in [getattr(one, "event", "") for one in read_run(tmp_path).happenings]


def test_the_error_that_ends_a_training_is_recorded_in_the_log(tmp_path: Path) -> None:
    with (
        pytest.raises(UserCodeError),
        TrainingMonitor(tmp_path / "run.jsonl", clock=ManualClock(STARTED_AT)) as monitor,
    ):
        monitor.event(training_event("training_started", a_start()))
        raise UserCodeError("shapes do not match")
    run = read_run(tmp_path)
    assert run.status == "stopped"
    assert isinstance(run.ended, Stopped)
    assert (run.ended.error, run.ended.why) == ("UserCodeError", "shapes do not match")
