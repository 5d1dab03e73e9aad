"""Other loggers hear the numbers, and cannot stop a training."""

from __future__ import annotations

import math

import pytest

from batchcal.core.errors import Interrupted
from batchcal.train.report.sinks import EVERY_S, PATIENCE, Forwarder
from tests.support.runs import a_training


class Kept:
    """A logger as others have it."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.flushed = 0

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.append((step, data))

    def flush(self) -> None:
        self.flushed += 1


def forwarder(sink: Kept | Failing, *, every_s: float = 0.0) -> tuple[Forwarder, list[str]]:
    told: list[str] = []
    return Forwarder(sink, report=told.append, every_s=every_s), told


class Failing:
    def __init__(self, error: Exception, *, times: int = 10**9) -> None:
        self.error, self.times, self.calls = error, times, 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error


def test_loggers_receive_numbers_under_grouped_names() -> None:
    sink = Kept()
    to, _ = forwarder(sink)
    for name, fields in a_training(epochs=1, per_epoch=2, trouble=False):
        to.event(name, fields)
    step, values = sink.logged[1]
    assert (step, values["epoch"]) == (2, 0)
    assert {"train/loss", "train/loss_scans", "train/grad_norm", "train/peak_bytes", "train/micro_batch"} <= set(values)
    epoch = next(values for _, values in sink.logged if "eval/accuracy" in values)
    assert {"epoch/loss", "eval/loss", "epoch/samples_per_s"} <= set(epoch)
    assert not {"train/step", "train/global_step"} & set(values), "where is not how much"
    assert sink.flushed == 1


def test_texts_booleans_and_none_are_not_sent_to_loggers() -> None:
    sink = Kept()
    to, _ = forwarder(sink)
    to.event("recovered", {"epoch": 2, "phase": "backward", "samples": 128, "safe": None, "lost_s": 0.25, "calm": True})
    to.event("notice", {"text": "no numbers at all"})
    to.event("step", {"global_step": 7, "loss": math.nan})
    assert sink.logged[0] == (0, {"epoch": 2, "recovered/samples": 128, "recovered/lost_s": 0.25})
    assert math.isnan(sink.logged[1][1]["train/loss"])
    assert len(sink.logged) == 2


def test_the_logged_step_never_decreases() -> None:
    sink = Kept()
    to, _ = forwarder(sink)
    for name, fields in a_training(epochs=4, per_epoch=10):
        to.event(name, fields)
    steps = [step for step, _ in sink.logged]
    assert steps == sorted(steps)


def test_steps_are_logged_at_an_interval_and_other_events_immediately() -> None:
    sink, now = Kept(), [0.0]
    to = Forwarder(sink, report=print, clock=lambda: now[0])
    for step in range(10):
        now[0] = step * EVERY_S / 4.5
        to.event("step", {"global_step": step, "loss": 1.0})
        to.event("resized", {"now": 8})
    assert [step for step, values in sink.logged if "train/loss" in values] == [0, 5]
    assert len(sink.logged) == 2 + 10


def test_a_failing_logger_is_reported_and_no_longer_called_after_three_failures() -> None:
    sink = Failing(ConnectionError("no route"))
    to, told = forwarder(sink)
    for step in range(10):
        to.event("step", {"global_step": step, "loss": 1.0})
    assert sink.calls == PATIENCE
    assert told == [
        "the logger Failing failed: ConnectionError: no route; training continues",
        "the logger Failing failed 3 times in a row and is no longer called",
    ]


def test_a_logger_that_fails_temporarily_is_still_called() -> None:
    sink = Failing(ConnectionError("no route"), times=2)
    to, told = forwarder(sink)
    for step in range(10):
        to.event("step", {"global_step": step, "loss": 1.0})
    assert sink.calls == 10
    assert len(told) == 1


def test_a_signal_during_logging_still_stops_the_training() -> None:
    to, _ = forwarder(Failing(Interrupted(15)))
    with pytest.raises(Interrupted):
        to.event("step", {"loss": 1.0})
