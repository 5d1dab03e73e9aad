"""A log read back, whatever a kill or a later version left in it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from batchcal.cli.views.run.page import page
from batchcal.cli.views.run.view import show
from batchcal.cli.views.run.words import ShownRun
from batchcal.core.clock import ManualClock
from batchcal.core.errors import UsageError
from batchcal.train.report.jsonl import JsonlLog
from batchcal.train.report.read import is_run, read_run
from batchcal.train.report.run import LoggedEnd, LoggedNotice, LoggedStart
from tests.support.runs import STARTED_AT, Told, a_start, a_training, tell, write_run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run.jsonl")


def test_a_log_is_read_back_with_all_recorded_values(run_file: Path) -> None:
    run = read_run(run_file.parent)
    assert run.started.spec == "batchcal.workload.examples.multiimage:task"
    assert run.started.time == STARTED_AT
    assert (len(run.steps), run.status, run.resumes, run.remarks) == (360, "ended", (), ())
    assert [one.epoch for one in run.epochs] == list(range(6))
    assert run.epochs[-1].evaluation.keys() == {"accuracy", "loss"}
    assert run.epochs[-1].losses.keys() == {"scans", "volumes"}
    assert isinstance(run.ended, LoggedEnd)
    (recovery,) = run.recoveries
    assert (recovery.phase, recovery.samples, recovery.action, recovery.safe) == ("backward", 128, "split", 64)
    assert [(one.was, one.now) for one in run.changes] == [(128, 64), (64, 96)]
    assert run.peak_bytes == max(int(run.ended.peak_bytes or 0), int(max(run.steps.column("peak_bytes"))))
    assert run.wall_s == pytest.approx(run.ended.at)
    told = [fields for name, fields in a_training() if name == "step"]
    assert list(run.steps.column("loss")) == pytest.approx([fields["loss"] for fields in told], rel=1e-8)


def test_events_are_assigned_to_their_steps(run_file: Path) -> None:
    run = read_run(run_file)
    assert run.recoveries[0].global_step == 145
    assert [one.global_step for one in run.changes] == [145, 252]
    assert [one.global_step for one in run.epochs] == [60, 120, 180, 240, 300, 360]


def test_a_size_change_logged_after_its_step_is_assigned_to_that_step(tmp_path: Path) -> None:
    step: Told = ("step", {"epoch": 0, "step": 3, "global_step": 3})
    after: Told = ("resized", {"epoch": 0, "step": 3, "was": 8, "now": 4, "why": "near the limit"})
    run = read_run(write_run(tmp_path / "run.jsonl", iter([("training_started", a_start()), step, after])))
    assert run.changes[0].global_step == 3


def test_the_prediction_error_is_computed_from_every_step(run_file: Path) -> None:
    run = read_run(run_file)
    error = run.prediction
    assert error is not None
    assert error.steps == 360
    assert 0 < error.median < error.p95 < 0.1
    off = [p / m - 1 for p, m in zip(run.steps.column("predicted_bytes"), run.steps.column("peak_bytes"), strict=True)]
    assert error.exceeded == sum(one < 0 for one in off)
    assert error.worst_under == pytest.approx(-min(off))


def test_a_run_without_measurements_has_no_prediction_peak_or_rate(tmp_path: Path) -> None:
    told: list[Told] = [("training_started", a_start()), ("step", {"epoch": 0, "step": 1, "loss": 0.5})]
    run = read_run(write_run(tmp_path / "run.jsonl", iter(told)))
    assert (run.prediction, run.peak_bytes, run.samples_per_s, run.status) == (None, None, None, "not ended")
    assert list(run.steps.places) == [1]


def test_nan_and_infinite_losses_are_read_back(tmp_path: Path) -> None:
    steps: list[Told] = [("step", {"epoch": 0, "step": place, "global_step": place, "loss": math.nan}) for place in (1, 2)]
    ended: Told = ("epoch_ended", {"epoch": 0, "loss": math.nan, "eval_loss": math.inf})
    run = read_run(write_run(tmp_path / "run.jsonl", iter([("training_started", a_start()), *steps, ended])))
    assert run.steps.not_finite("loss") == (1, 2)
    assert run.epochs[0].loss is not None
    assert math.isnan(run.epochs[0].loss)
    assert run.epochs[0].evaluation == {"loss": math.inf}


def resumed(path: Path, *, killed_after: int, from_epoch: int, from_sample: int) -> Path:
    """A run that is killed, and goes on from a checkpoint that is older."""
    clock = ManualClock(STARTED_AT)
    told = list(a_training(epochs=3, per_epoch=10, trouble=False))
    with JsonlLog(path, clock=clock) as log:
        tell(log, iter(told[:killed_after]), clock)
    again = (
        (name, fields)
        for name, fields in told
        if (int(fields.get("epoch") or 0), int(fields.get("samples_seen") or 0)) > (from_epoch, from_sample)
    )
    with JsonlLog(path, clock=clock) as log:
        start: Told = ("training_started", a_start(epoch=from_epoch, resumed_at_sample=from_sample, epochs=3))
        tell(log, iter([start, *(one for one in again if one[0] == "step")]), clock)
    return path


def test_repeated_steps_count_once(tmp_path: Path) -> None:
    # The header and 17 steps with the end of an epoch and a checkpoint between them; the checkpoint is of step 14.
    path = resumed(tmp_path / "run.jsonl", killed_after=1 + 17 + 2, from_epoch=1, from_sample=4 * 512)
    run = read_run(path)
    assert list(run.steps.column("global_step")) == [float(place) for place in range(1, 31)]
    assert run.repeated_steps == 3
    assert [one.resumed_at_sample for one in run.resumes] == [2048]
    assert run.wall_s > run.steps.column("at")[-1], "both processes took their time"
    assert [type(one) for one in run.happenings if isinstance(one, LoggedStart)] == [LoggedStart]


def test_a_repeated_epoch_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for epoch, loss in ((0, 1.0), (0, 2.0), (1, 3.0)):
        with JsonlLog(path) as log:
            log.event("training_started", a_start(epoch=epoch, resumed_at_sample=1))
            log.event("epoch_ended", {"epoch": epoch, "loss": loss})
    assert [(one.epoch, one.loss) for one in read_run(path).epochs] == [(0, 2.0), (1, 3.0)]


def test_an_incomplete_last_line_is_ignored(run_file: Path) -> None:
    whole = run_file.read_bytes()
    run_file.write_bytes(whole[: whole.rindex(b'"event"') + 30])
    run = read_run(run_file)
    assert (run.status, run.remarks, len(run.steps)) == ("not ended", ("the last line is incomplete",), 360)


def test_a_log_truncated_at_any_position_can_be_read(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.jsonl", a_training(epochs=1, per_epoch=3))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole), 7):
        path.write_bytes(whole[:length])
        run = read_run(path)
        assert len(run.steps) == sum(line.startswith(b'{"event":"step"') for line in whole[:length].split(b"\n")[:-1]) or (
            run.remarks == () and not whole[:length].endswith(b"\n")
        )


def test_lines_that_cannot_be_read_are_counted(run_file: Path) -> None:
    lines = run_file.read_bytes().splitlines(keepends=True)
    broken = [b'{"event":"st\n', b"[1]\n", b"\xff\xfe\n", b"\n", b'{"event":"epoch_ended","epoch":"none"}\n', b"[" * 5000 + b"\n"]
    run_file.write_bytes(b"".join([*lines[:50], *broken, *lines[50:]]))
    run = read_run(run_file)
    assert len(run.steps) == 360
    assert run.remarks == ("5 lines could not be read",)


def test_unknown_events_and_fields_of_a_later_version_are_accepted(run_file: Path) -> None:
    lines = run_file.read_text().splitlines(keepends=True)
    header = {**json.loads(lines[0]), "cluster": "blue"}
    lines[0] = json.dumps(header) + "\n"
    lines.insert(3, '{"event":"moon_phase","at":1.0,"phase":"full"}\n')
    lines.insert(4, '{"event":"notice","at":1.0,"text":"hello","colour":"red"}\n')
    run_file.write_text("".join(lines))
    run = read_run(run_file)
    assert run.remarks == ()
    assert (run.started.model_extra or {})["cluster"] == "blue"
    assert [one.text for one in run.happenings if isinstance(one, LoggedNotice)] == ["hello"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no"),
        (b"", "is not the log of a run"),
        (b"hello\n", "is not the log of a run"),
        (b'{"kind":"calibration"}\n', "is not the log of a run"),
        (b'{"event":"step","loss":1.0}\n', "is not the log of a run"),
        (b"\x00\xff" * 1000, "is not the log of a run"),
        (b'{"kind":"run"}\n', "has format None"),
        (b'{"kind":"run","format":2}\n', "has format 2"),
        (b'{"kind":"run","format":1,"epochs":"many"}\n', "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_run_log_is_rejected_with_a_reason(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        read_run(path)
    assert caught.value.try_


NAMES = ("step", "recovered", "resized", "epoch_ended", "checkpoint_saved", "notice", "training_ended", "training_stopped", "?")
KEYS = ("at", "epoch", "step", "global_step", "samples_seen", "loss", "loss_a", "peak_bytes", "was", "now", "text", "not_finite")
VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just([1])
EVENTS = st.fixed_dictionaries({"event": st.sampled_from((*NAMES, "training_started"))}).flatmap(
    lambda named: st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6).map(lambda fields: {**named, **fields})
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENTS, max_size=12))
def test_any_events_after_the_header_can_be_read_and_displayed(tmp_path: Path, events: list[dict[str, object]]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [{"event": "training_started", **a_start()}, *events]))
    run = read_run(path)
    assert len(run.steps) <= sum(one["event"] == "step" for one in events)
    told = (run.epochs, run.recoveries, run.changes, run.prediction, run.samples_per_s, run.peak_bytes, run.status)
    assert told is not None
    seen = ShownRun(run=run, at=STARTED_AT)
    assert "</html>" in page(seen)
    console = Console(file=io.StringIO(), width=80)
    for renderable in show(seen):
        console.print(renderable)


def test_a_folder_without_a_run_log_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no run\.jsonl in"):
        read_run(tmp_path)
    assert not is_run(tmp_path)
