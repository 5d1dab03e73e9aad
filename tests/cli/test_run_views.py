"""What a person sees of a training, at 80 columns and on a page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchcal.__main__ import main
from batchcal.cli.views.charts.plot import Axis, axis_over, number
from batchcal.cli.views.charts.plot_svg import draw as draw_svg
from batchcal.cli.views.charts.plot_text import draw
from batchcal.cli.views.run import charts
from batchcal.cli.views.run.page import page
from batchcal.cli.views.run.view import show
from batchcal.cli.views.run.words import ShownRun
from batchcal.core.progress import Field
from batchcal.core.units import GIB, MIB
from batchcal.train.report.jsonl import JsonlLog
from batchcal.train.report.read import read_run
from batchcal.train.report.run import Run
from tests.cli.test_views import GOLDEN, _Page, text_of
from tests.support.runs import STARTED_AT, Told, a_start, a_training, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return kept(write_run(tmp_path / "run.jsonl"))


def kept(path: Path) -> Run:
    """As it would lie in a project."""
    return replace(read_run(path), path=Path("runs/first/run.jsonl"), written_at=STARTED_AT + timedelta(minutes=3))


def seen(run: Run) -> ShownRun:
    return ShownRun(run=run, at=STARTED_AT + timedelta(hours=2, minutes=3))


def told(path: Path, *events: Told) -> Run:
    return kept(write_run(path / "other.jsonl", iter(events)))


def a_diverged_run(path: Path) -> Run:
    """Killed after its loss became no number, without tasks, measurements or epochs."""
    steps: list[Told] = [
        ("step", {"epoch": 0, "step": place, "global_step": place, "loss": math.nan if place > 7 else 1e3**place})
        for place in range(1, 10)
    ]
    return told(path, ("training_started", a_start(budget_bytes=None)), *steps)


def test_a_run_view_matches_the_golden_file(run: Run) -> None:
    assert text_of(show(seen(run))) == (GOLDEN / "run.txt").read_text(encoding="utf-8")


def test_the_view_of_a_diverged_run_matches_the_golden_file(tmp_path: Path) -> None:
    assert text_of(show(seen(a_diverged_run(tmp_path)))) == (GOLDEN / "run-diverged.txt").read_text(encoding="utf-8")


def test_skipped_steps_are_in_the_summary(tmp_path: Path) -> None:
    ended: Told = ("epoch_ended", {"epoch": 0, "loss": 0.5, "steps": 60, "skipped_steps": 9})
    text = text_of(show(seen(told(tmp_path, ("training_started", a_start()), ended))))
    assert re.search(r"skipped +9 steps +changed no parameter", text)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_run_view_fits_the_terminal_width_and_has_no_escape_codes_in_a_pipe(width: int, run: Run, tmp_path: Path) -> None:
    for one in (run, a_diverged_run(tmp_path)):
        text = text_of(show(seen(one)), width=width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "\x1b" not in text


def test_a_run_view_uses_plain_characters_without_unicode(run: Run) -> None:
    text = text_of(show(seen(run)), encoding="ascii")
    assert "?" not in text, "nothing had to be replaced"
    assert "x ran out of memory  v smaller  ^ larger" in text


@pytest.mark.parametrize(
    "events",
    [
        [("training_started", {})],
        [("training_started", a_start()), ("step", {})],
        [("training_started", a_start()), ("step", {"loss": 0.0, "samples_per_s": 0.0, "peak_bytes": 0, "predicted_bytes": 0})],
        [("training_started", a_start()), ("step", {"loss": -3.5, "lr": 0.0}), ("recovered", {}), ("resized", {})],
        [("training_started", a_start()), ("epoch_ended", {"epoch": 0}), ("training_ended", {"stopped_early": True})],
    ],
)
def test_a_run_with_any_events_can_be_displayed(events: list[Told], tmp_path: Path) -> None:
    one = told(tmp_path, *events)
    assert text_of(show(seen(one)))
    parsed = _Page()
    parsed.feed(page(seen(one)))
    assert parsed.open == []


def test_the_state_shows_how_a_run_ended(run: Run, tmp_path: Path) -> None:
    assert seen(run).state == "ended"
    assert seen(a_diverged_run(tmp_path)).state == "not ended, last update 2 h 0 min ago"
    early: Told = ("training_ended", {"stopped_early": True, "stop_reason": "loss has not become better for 3 epochs"})
    one = told(tmp_path, ("training_started", a_start()), early)
    assert seen(one).state == "stopped early"
    assert "has not become better for 3 epochs" in text_of(show(seen(one))).replace("\n", " ").replace("  ", "")


def test_the_memory_chart_of_a_run_shows_the_budget_and_events(run: Run) -> None:
    plot = charts.memory(run, 100)
    assert plot is not None
    assert [(rule.name, rule.y) for rule in plot.rules] == [("budget", 839 * MIB), ("limit", GIB)]
    assert [(mark.kind, mark.x) for mark in plot.marks] == [("recovered", 145), ("smaller", 145), ("larger", 252)]
    assert plot.marks[0].y == 839 * MIB
    assert [series.name for series in plot.series] == ["predicted", "measured"]


def test_a_limit_far_above_the_memory_of_a_run_is_not_drawn(tmp_path: Path) -> None:
    step: Told = ("step", {"epoch": 0, "step": 1, "peak_bytes": 500 * MIB})
    plot = charts.memory(told(tmp_path, ("training_started", a_start(limit_bytes=64 * GIB)), step), 100)
    assert plot is not None
    assert [rule.name for rule in plot.rules] == ["budget"]
    assert plot.y.high < GIB


def test_a_single_memory_peak_among_many_steps_is_drawn(tmp_path: Path) -> None:
    peaks = [400 * MIB] * 5000
    peaks[3210] = 900 * MIB
    steps: Iterator[Told] = (("step", {"global_step": place + 1, "peak_bytes": peak}) for place, peak in enumerate(peaks))
    plot = charts.memory(told(tmp_path, ("training_started", a_start()), *steps), 100)
    assert plot is not None
    assert max(point.high for point in plot.series[0].points) == 900 * MIB
    assert plot.y.high > 900 * MIB


def test_the_worst_predictions_are_drawn(tmp_path: Path) -> None:
    def peak(place: int) -> int:
        return {1234: 700, 2345: 300}.get(place, 500) * MIB

    steps: Iterator[Told] = (("step", {"predicted_bytes": 510 * MIB, "peak_bytes": peak(place)}) for place in range(4000))
    plot = charts.predictions(told(tmp_path, ("training_started", a_start()), *steps))
    assert plot is not None
    dots = {point.y for point in plot.series[1].points}
    assert dots == {300 * MIB, 500 * MIB, 700 * MIB}


def test_losses_of_different_magnitudes_get_a_logarithmic_axis(tmp_path: Path) -> None:
    plot = charts.loss(a_diverged_run(tmp_path), 100)
    assert plot is not None
    assert plot.y.logarithmic
    assert [mark.kind for mark in plot.marks] == ["not-finite", "not-finite"]


@pytest.mark.parametrize(
    ("axis", "about", "expected"),
    [
        (Axis(0, 1.08, "number"), 5, (0, 0.5, 1.0)),
        (Axis(0.62, 0.71, "number"), 4, (0.65, 0.7)),
        (Axis(-2.0, 2.0, "count"), 4, (-2, -1, 0, 1, 2)),
        (Axis(0, 3, "count"), 20, (0, 1, 2, 3)),
        (Axis(0, 1.1 * GIB, "bytes"), 5, (0, 256 * MIB, 512 * MIB, 768 * MIB, GIB)),
        (Axis(0.09, 11, "number", logarithmic=True), 8, (0.1, 0.2, 0.5, 1, 2, 5, 10)),
        (Axis(0.09, 11, "number", logarithmic=True), 3, (0.1, 1, 10)),
        (Axis(1e-9, 1e9, "number", logarithmic=True), 4, (1e-9, 1e-4, 1e1, 1e6)),
    ],
)
def test_axis_ticks_are_round_numbers_within_the_range(axis: Axis, about: int, expected: tuple[float, ...]) -> None:
    assert axis.ticks(about) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [-1.0], [math.nan, 2.0], [1e-12, 1e12], [3.0, 3.0]])
def test_an_axis_has_a_positive_length_for_any_values(values: list[float]) -> None:
    for from_zero in (True, False):
        axis = axis_over(values, "number", from_zero=from_zero, may_be_log=True)
        assert axis.low < axis.high
        assert all(0 <= axis.share(value) <= 1 for value in values if math.isfinite(value))
        assert len(axis.ticks(5)) <= 12


def test_numbers_have_four_significant_digits() -> None:
    values = (0.25312, 1530.2, 3e-5, 12.0, 1234567.0, 1e9, -0.5, math.nan, 0.0)
    assert [number(value) for value in values] == ["0.2531", "1,530", "3e-05", "12", "1,234,567", "1e+09", "-0.5", "nan", "0"]


def test_a_text_chart_has_the_requested_height(run: Run) -> None:
    for chart in (charts.loss, charts.memory, charts.throughput, charts.sizes, charts.task_weights, charts.learning_rate):
        plot = chart(run, 100)
        assert plot is not None
        lines = draw(plot, width=80, height=9)
        assert len(lines) in {12, 13}, "title, rows, axis, ticks; and a legend where there is something to tell apart"


def test_the_run_page_is_self_contained_and_supports_dark_mode(run: Run) -> None:
    html = page(seen(run))
    parsed = _Page()
    parsed.feed(html)
    assert parsed.open == []
    assert parsed.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(parsed.seen)
    assert not re.findall(r"https?://|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert parsed.seen.count("svg") == 9 + 3, "the wide ones also in a version for narrow screens"
    wanted = ("loss of each task", "predicted against measured", "weights of the tasks", "ran out of memory", "accuracy 0.9231")
    assert [text for text in wanted if text not in html] == []


def test_a_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    def trouble() -> Iterator[Told]:
        for place, event in enumerate(a_training(epochs=300, per_epoch=10, trouble=False)):
            yield event
            if place % 3 == 0:
                fields: dict[str, Field] = {
                    "epoch": 0,
                    "step": 1,
                    "phase": "forward",
                    "samples": 64,
                    "safe": 32,
                    "why": "why" * 50,
                }
                yield "recovered", fields

    html = page(seen(told(tmp_path, *trouble())))
    assert len(html) < 600_000
    assert "events, the last 200 of" in html
    assert "epochs, the last 200 of 300" in html


def test_the_run_page_escapes_text_from_the_log(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    step: Told = ("step", {"global_step": 1, f"loss_{evil}": 1.0, "loss_b": 2.0, f"weight_{evil}": 1.0})
    events: list[Told] = [
        ("training_started", a_start(spec=evil, device=evil, batchcal=evil)),
        step,
        ("recovered", {"phase": evil, "why": evil, "action": evil}),
        ("notice", {"text": evil}),
        ("epoch_ended", {"epoch": 0, f"eval_{evil}": 1.0}),
        ("training_ended", {"stop_reason": evil, "stopped_early": True}),
    ]
    html = page(seen(told(tmp_path, *events)))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_scatter_plot_with_a_single_point_is_drawn(tmp_path: Path) -> None:
    step: Told = ("step", {"predicted_bytes": 500 * MIB, "peak_bytes": 500 * MIB})
    plot = charts.predictions(told(tmp_path, ("training_started", a_start()), step))
    assert plot is not None
    assert "<circle" in draw_svg(plot, width=440, height=300)


def test_show_accepts_the_file_or_the_folder_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "first" / "run.jsonl")
    renamed = write_run(tmp_path / "log.txt")
    for named in (path, path.parent, renamed):
        assert main(["show", str(named)]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("batchcal.workload.examples.multiimage:task")
        assert err == ""
        assert max(len(line) for line in out.splitlines()) <= 80


def test_show_json_prints_a_run_as_a_single_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run.jsonl")
    assert main(["show", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["kind"], document["status"], document["steps"]) == (1, "run-view", "ended", 360)
    assert document["started"]["budget_bytes"] == 839 * MIB
    assert document["epochs"][5]["eval_accuracy"] == pytest.approx(0.923, abs=1e-3)
    assert document["recoveries"][0]["safe"] == 64
    assert document["prediction"]["steps"] == 360
    assert {len(values) for values in document["curves"]["loss"].values()} == {180}
    assert document["path"] == str(path)


def test_the_json_document_of_a_run_contains_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    with JsonlLog(path) as log:
        log.event("training_started", a_start())
        log.event("step", {"global_step": 1, "loss": math.nan})
        log.event("epoch_ended", {"epoch": 0, "loss": math.nan})
    assert main(["show", str(path), "--json"]) == 0

    def refuse(name: str) -> float:
        raise AssertionError(name)

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["not_finite_steps"] == [1]
    assert document["epochs"][0]["loss"] is None


def test_the_run_page_does_not_replace_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run.jsonl")
    before = path.read_bytes()
    assert main(["show", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert capsys.readouterr() == ("", f"written: {tmp_path}/page.html\n")
    assert main(["show", str(path), "--html", str(path)]) == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--check"], "a run is not checked"),
        (["--why"], "a run always shows the reason"),
        (["--require-signature"], "a run is not signed"),
        (["calibration.json"], "compares calibrations only"),
    ],
)
def test_options_for_calibrations_are_rejected_for_a_run(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "run.jsonl")
    assert main(["show", str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert f"  try: batchcal show {path}" in err


def test_a_run_as_the_second_file_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run.jsonl")
    assert main(["show", "calibration.json", str(path)]) == 2
    assert "compares calibrations only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.jsonl", "hello\n", "is not the log of a run"),
        ("run.jsonl", '{"kind":"run","format":99}\n', "has format 99"),
        ("other/x", "", "there is no run.jsonl in"),
    ],
)
def test_a_file_that_is_not_a_run_is_rejected(
    name: str, content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert main(["show", str(path.parent if name == "other/x" else path)]) == 2
    assert says in capsys.readouterr().err
