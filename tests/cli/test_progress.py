"""What is told while something runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from batchcal.cli.progress import STEP_EVERY_S, Carefully, Lines, is_interactive, listening
from batchcal.cli.views.live import CalibrationLive, TrainingLive
from batchcal.cli.voice import Voice
from batchcal.core.errors import Interrupted
from batchcal.core.progress import Fields, Silent
from batchcal.core.units import MIB

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


def test_the_live_table_has_a_row_a_probe_and_the_best_so_far() -> None:
    terminal = FakeTerminal()
    live = CalibrationLive(console=terminal.console, ticking=False)
    with live:
        for name, fields in CALIBRATION:
            live.event(name, fields)
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
        live.note("probe_ended", {**ended, "sequence": sequence})
    text = terminal.shows(live)
    assert len(text.splitlines()) <= 24
    assert " 59 " in text
    assert "\n  1 " not in text


def test_a_training_shows_its_step_and_the_epochs_before() -> None:
    terminal = FakeTerminal()
    live = TrainingLive(console=terminal.console)
    with live:
        live.event("training_started", {"epochs": 3, "epoch": 0})
        live.event("epoch_ended", {"epoch": 0, "loss": 0.5, "steps": 10, "eval_accuracy": 0.9})
        live.event("step", {"epoch": 1, "step": 4, "loss": 0.25, "samples_per_s": 1530.0})
    text = terminal.shows(live)
    assert "epoch 1 of 3: loss 0.5000, eval accuracy 0.9000" in text
    assert "epoch 2 of 3, step 4: loss 0.2500, 1,530 samples/s" in text


def test_elsewhere_each_event_is_a_line_and_steps_are_told_now_and_then() -> None:
    told: list[str] = []
    now = [0.0]
    lines = Lines(told.append, lambda: now[0])
    lines.event("best", {"mode": "train", "batch": 8})
    for step in range(4):
        now[0] = step * STEP_EVERY_S / 2
        lines.event("step", {"step": step})
    assert told == ["best mode=train batch=8", "step step=0", "step step=2"]


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error, self.times = error, 0

    def event(self, name: str, fields: Fields) -> None:
        self.times += 1
        raise self.error


def test_a_terminal_that_goes_away_does_not_end_a_calibration() -> None:
    broken = Broken(OSError("gone"))
    listener = Carefully(broken)
    listener.event("best", {})
    listener.event("best", {})
    assert broken.times == 1


def test_a_signal_while_drawing_still_counts() -> None:
    with pytest.raises(Interrupted):
        Carefully(Broken(Interrupted(2))).event("best", {})


def test_quiet_is_silent_and_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(Voice(quiet=True), "calibration") as quiet:
        assert isinstance(quiet, Silent)
    with listening(Voice(), "training") as piped:
        assert isinstance(piped, Lines)


@pytest.mark.parametrize(
    ("variables", "live"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "CI": "true"}, False), ({"TERM": "dumb"}, False)]
)
def test_only_a_terminal_that_somebody_looks_at_is_drawn_on(
    variables: dict[str, str], live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert is_interactive() is live
