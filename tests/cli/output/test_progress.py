"""What is told while something runs."""

from __future__ import annotations

import io
import itertools
import re

import pytest
from rich.console import Console, Group
from rich.text import Text

from batchcal.cli.output.messages import Messages
from batchcal.cli.output.progress import (
    STEP_EVERY_S,
    Lines,
    SafeListener,
    is_interactive,
    listening_to_calibration,
    listening_to_study,
    listening_to_training,
)
from batchcal.cli.output.remaining_time import Pace
from batchcal.cli.views.live import CalibrationLive
from batchcal.cli.views.run.live import EVERY_S, SHARE, TrainingLive
from batchcal.core.errors import Interrupted
from batchcal.core.progress import Fields, Named, Note, Output, Silent
from batchcal.core.units import MIB
from batchcal.values.training_events import EpochEnded, StepEnded, TrainingStarted
from tests.support.events import calibration_event, study_event, training_event
from tests.support.runs import a_start, a_training

CALIBRATION: tuple[tuple[str, Fields], ...] = (
    ("calibrate_started", {"task": "task.py:task", "device": "cpu", "budget_bytes": 800 * MIB, "time_limit_s": 60.0}),
    ("phase", {"phase": "scale", "mode": "train", "why": "half of the cap"}),
    ("probe_started", {"sequence": 1, "phase": "scale", "mode": "train", "batch": 256, "predicted_bytes": 400 * MIB}),
    (
        "probe_ended",
        {
            "sequence": 1,
            "phase": "scale",
            "mode": "train",
            "batch": 256,
            "outcome": "fits",
            "peak_bytes": 410 * MIB,
            "predicted_bytes": 400 * MIB,
            "budget_bytes": 800 * MIB,
            "samples_per_s": 1234.5,
            "wall_s": 1.5,
        },
    ),
    ("best", {"mode": "train", "batch": 256, "peak_bytes": 410 * MIB}),
    ("probe_started", {"sequence": 2, "phase": "verify", "mode": "train", "batch": 544, "predicted_bytes": None}),
    ("note", {"text": "glibc repeats its peak within 5-8 %"}),
)


class FakeTerminal:
    def __init__(self) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=True, width=90, height=24, highlight=False)

    def shows(self, live: CalibrationLive | TrainingLive) -> str:
        plain = Console(file=io.StringIO(), width=90, highlight=False)
        with plain.capture() as captured:
            plain.print(live.draw())
        return captured.get()


def test_the_live_table_shows_a_row_per_probe_and_the_best_size() -> None:
    terminal = FakeTerminal()
    live = CalibrationLive(console=terminal.console, ticking=False)
    with live:
        for name, fields in CALIBRATION:
            live.event(calibration_event(name, fields))
        text = terminal.shows(live)
    after = terminal.shows(live)
    lines = text.splitlines()
    assert lines[0].startswith("calibrating task.py:task on cpu, budget 800 MiB")
    assert lines[0].rstrip().endswith("train 256")
    assert [part for part in lines[2].split() if part in {"scale", "256", "fits", "1,234"}] == ["scale", "256", "1,234", "fits"]
    assert "544" in lines[3], "the one that runs"
    assert "glibc repeats" in text
    assert "544" not in after
    assert terminal.file.getvalue(), "it was drawn"


def test_a_long_calibration_shows_its_last_probes() -> None:
    terminal = FakeTerminal()
    live = CalibrationLive(console=terminal.console, ticking=False)
    ended = dict(CALIBRATION[3][1])
    for sequence in range(1, 60):
        live.note(calibration_event("probe_ended", {**ended, "sequence": sequence}))
    text = terminal.shows(live)
    assert len(text.splitlines()) <= 24
    assert " 59 " in text
    assert "\n  1 " not in text


def test_a_training_shows_its_step_and_the_previous_epochs() -> None:
    terminal = FakeTerminal()
    live = TrainingLive(console=terminal.console)
    with live:
        live.event(training_event("training_started", {"epochs": 3, "epoch": 0}))
        live.event(
            training_event("epoch_ended", {"epoch": 0, "loss": 0.5, "steps": 10, "eval_accuracy": 0.9, "samples_per_s": 1520.0})
        )
        live.event(training_event("step", {"epoch": 1, "step": 4, "loss": 0.25, "samples_per_s": 1530.0}))
        text = terminal.shows(live)
    assert "epoch 1 of 3: loss 0.5, eval accuracy 0.9, 1,520 samples/s" in text
    assert "epoch 2 of 3, step 4" in text
    assert "loss 0.25" in text
    assert "1,530 samples/s" in text


def test_a_training_shows_its_progress_memory_and_events() -> None:
    terminal, now = FakeTerminal(), [0.0]
    live = TrainingLive(console=terminal.console, clock=lambda: now[0])
    with live:
        for name, fields in itertools.islice(a_training(), 305):
            now[0] += 0.5 if name == "step" else 0.0
            live.event(training_event(name, fields))
        text = terminal.shows(live)
        for name, fields in itertools.islice(a_training(), 305, None):
            live.event(training_event(name, fields))
    after = terminal.shows(live)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "training batchcal.workload.examples.multiimage:task on cpu, tcmalloc"
    assert "- epoch 3, step 25: out of memory in backward of 128: split, at most 64 now" in lines
    assert "- epoch 5, step 12: micro-batch 64 to 96: 40 calm steps, 31% of the budget is free" in lines
    where, losses, memory, speed = lines[-4:]
    assert re.fullmatch(r"█+░+ 81%  epoch 5 of 6, step 53 of 60, 33\.\d s left", where)
    assert re.fullmatch(r"loss \S+  scans \S+  volumes \S+  grad norm \S+  lr 0\.001", losses)
    assert re.fullmatch(r"█+░+ \d+ MiB of 839 MiB, \d+ MiB predicted", memory)
    assert re.fullmatch(r"[\d,]+ samples/s, 5 x 96 for 512", speed)
    assert max(len(line) for line in text.splitlines()) <= 90
    assert "epoch 6 of 6: loss" in after
    assert "░" not in after, "nothing moves any more"


def test_a_peak_above_the_budget_is_red() -> None:
    live = TrainingLive(console=FakeTerminal().console)
    for peak, style in ((700, "green"), (800, "yellow"), (900, "red")):
        live.note(training_event("training_started", {"epochs": 1, "budget_bytes": 839 * MIB}))
        live.note(training_event("step", {"epoch": 0, "step": 1, "peak_bytes": peak * MIB}))
        drawn = live.draw()
        assert isinstance(drawn, Group)
        styles = {str(span.style) for line in drawn.renderables if isinstance(line, Text) for span in line.spans}
        assert style in styles


def test_a_small_terminal_shows_the_last_epochs_and_the_progress() -> None:
    live = TrainingLive(console=Console(file=io.StringIO(), force_terminal=True, width=60, height=12))
    for epoch in range(100):
        live.note(training_event("epoch_ended", {"epoch": epoch, "loss": 1.0}))
    live.note(training_event("step", {"epoch": 100, "step": 1, "loss": 1.0}))
    drawn = live.draw()
    assert isinstance(drawn, Group)
    assert len(drawn.renderables) < 12
    assert any("epoch 100 of ?" in str(line) for line in drawn.renderables)


def test_drawing_takes_a_small_share_of_the_time() -> None:
    now, drawn = [0.0], list[float]()

    class Slow(TrainingLive):
        def refresh(self) -> None:
            drawn.append(now[0])
            now[0] += 0.004

    live = Slow(console=FakeTerminal().console, clock=lambda: now[0])
    live.event(training_event("training_started", a_start()))
    for step in range(2000):
        now[0] += 0.01
        live.event(training_event("step", {"epoch": 0, "step": step}))
    assert len(drawn) * 0.004 <= SHARE * now[0] + 0.008
    assert all(later - earlier >= EVERY_S for earlier, later in itertools.pairwise(drawn))
    live.event(training_event("resized", {"was": 8, "now": 4}))
    assert drawn[-1] == pytest.approx(now[0] - 0.004), "what happens is drawn at once"


def _started(pace: Pace, told: Fields, *, now_s: float) -> None:
    event = training_event("training_started", told)
    assert isinstance(event, TrainingStarted)
    pace.started(event, now_s=now_s)


def _stepped(pace: Pace, told: Fields) -> None:
    event = training_event("step", told)
    assert isinstance(event, StepEnded)
    pace.stepped(event)


@pytest.mark.parametrize(
    ("start", "at", "share", "left_s"),
    [
        ({"epochs": 4, "train_samples": 1000}, {"epoch": 1, "step": 5, "samples_seen": 500}, 0.375, 50.0),
        ({"epochs": 4, "steps_per_epoch": 10}, {"epoch": 2, "step": 5}, 0.625, 18.0),
        ({"epochs": 4, "epoch": 2, "resumed_at_sample": 500, "train_samples": 1000}, {"epoch": 3, "samples_seen": 0}, 0.75, 60.0),
        ({"epochs": 4}, {"epoch": 0, "step": 5}, None, None),
        ({}, {"epoch": 0, "step": 5}, None, None),
    ],
)
def test_the_pace_estimates_the_progress_and_the_remaining_time(
    start: Fields, at: Fields, share: float | None, left_s: float | None
) -> None:
    pace = Pace()
    _started(pace, start, now_s=10.0)
    assert pace.left_s(now_s=10.0) is None
    _stepped(pace, at)
    assert pace.share == (None if share is None else pytest.approx(share))
    assert pace.left_s(now_s=40.0) == (None if left_s is None else pytest.approx(left_s))


def test_the_length_of_a_stream_epoch_is_estimated_from_the_first_epoch() -> None:
    pace = Pace()
    _started(pace, {"epochs": 2}, now_s=0.0)
    ended = training_event("epoch_ended", {"epoch": 0, "steps": 20})
    assert isinstance(ended, EpochEnded)
    pace.epoch_ended(ended)
    _stepped(pace, {"epoch": 1, "step": 10})
    assert pace.share == pytest.approx(0.75)


def test_line_output_prints_each_event_and_limits_step_lines() -> None:
    told: list[str] = []
    now = [0.0]
    lines = Lines(told.append, lambda: now[0])
    lines.event(calibration_event("best", {"mode": "train", "batch": 8}))
    for step in range(4):
        now[0] = step * STEP_EVERY_S / 2
        lines.event(training_event("step", {"step": step}))
    assert told[0] == "best mode=train batch=8"
    assert [line.split()[:3] for line in told[1:]] == [["step", "epoch=0", "step=0"], ["step", "epoch=0", "step=2"]]


def test_a_piped_training_prints_loss_memory_speed_and_remaining_time() -> None:
    told: list[str] = []
    now = [0.0]
    lines = Lines(told.append, lambda: now[0])
    for name, fields in a_training():
        now[0] += 0.4 if name == "step" else 0.0
        lines.event(training_event(name, fields))
    names = [line.split()[0] for line in told]
    assert names.count("epoch_ended") == 6
    assert (names.count("recovered"), names.count("resized"), names.count("training_ended")) == (1, 2, 1)
    assert 144 / STEP_EVERY_S - 3 <= names.count("step") <= 144 / STEP_EVERY_S + 1
    step = next(line for line in told if line.startswith("step epoch=3"))
    keys = [part.partition("=")[0] for part in step.split()[1:]]
    assert {"loss", "loss_scans", "peak_bytes", "predicted_bytes", "micro_batch", "samples_per_s", "left_s"} <= set(keys)
    assert not {"weight_scans", "wall_s", "samples_seen"} & set(keys)


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error, self.times = error, 0

    def event(self, event: Named, /) -> None:
        self.times += 1
        raise self.error


def test_a_closed_terminal_does_not_end_a_calibration() -> None:
    broken = Broken(OSError("gone"))
    listener = SafeListener(broken)
    listener.event(Note("all is well"))
    listener.event(Note("all is well"))
    assert broken.times == 1


def test_a_signal_during_drawing_is_raised() -> None:
    with pytest.raises(Interrupted):
        SafeListener(Broken(Interrupted(2))).event(Note("all is well"))


def test_quiet_prints_no_progress_and_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening_to_calibration(Messages(quiet=True)) as quiet:
        assert isinstance(quiet, Silent)
    with listening_to_training(Messages(verbose=True)) as piped:
        assert isinstance(piped, Lines)


@pytest.mark.parametrize("verbose", [True, False])
def test_output_of_user_code_is_shown_only_with_v(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with listening_to_calibration(Messages(verbose=verbose)) as progress:
        progress.event(Output("loading data\n100 %"))
        progress.event(Note("glibc"))
    assert capsys.readouterr().err == ("  | loading data\n  | 100 %\n" if verbose else "") + "note text=glibc\n"


@pytest.mark.parametrize("verbose", [True, False])
def test_calibrations_of_a_study_are_shown_only_with_v(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with listening_to_study(Messages(verbose=verbose)) as listener:
        listener.progress.event(study_event("shape_calibrated", {"shape": "wide", "worker": 1}))
        listener.progress.event(study_event("best", {"mode": "train", "batch": 8, "worker": 1}))
        listener.progress.event(study_event("output", {"text": "loading", "worker": 1}))
    details = "best mode=train batch=8 worker=1\n  | loading\n"
    assert capsys.readouterr().err == "shape_calibrated shape=wide worker=1\n" + (details if verbose else "")


@pytest.mark.parametrize(
    ("variables", "live"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "CI": "true"}, False), ({"TERM": "dumb"}, False)]
)
def test_live_progress_needs_an_interactive_terminal(
    variables: dict[str, str], live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert is_interactive() is live
