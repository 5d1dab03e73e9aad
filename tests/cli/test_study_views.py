"""What a person sees of a study, at 80 columns and on a page."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from batchcal.cli.output import document
from batchcal.cli.views.charts import parallel_svg
from batchcal.cli.views.study.live import StudyLive
from batchcal.cli.views.study.page import page
from batchcal.cli.views.study.view import show
from batchcal.cli.views.study.winner import show as show_winner
from batchcal.workload.spec.reference import Scalar
from tests.cli.test_views import GOLDEN, _Page, text_of
from tests.support.events import study_event
from tests.support.studies import a_busy_study, a_study, a_trial


def test_a_study_view_matches_the_golden_file() -> None:
    assert text_of(show(a_busy_study(), storage=".batchcal/first.journal")) == (GOLDEN / "study.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_study_view_fits_the_terminal_width_without_truncated_values(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    for part in show(a_busy_study()):
        console.print(part)
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    assert any("0.4" in line and "complete" in line for line in lines)
    assert any("running" in line and "0.7" in line for line in lines)


def test_an_empty_study_shows_zero_trials() -> None:
    assert "0 of 20" in text_of(show(a_study()))


def test_the_best_trial_is_shown_with_its_values() -> None:
    seen = a_busy_study()
    best = seen.best()
    assert best is not None
    told = text_of(show_winner(seen, best))
    assert "mse 0.4" in told
    assert "learning_rate" in told
    assert "64 = 32x2" in told


def test_live_progress_of_a_study_shows_the_best_trial_and_events() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=30, force_terminal=True, color_system=None)
    with StudyLive(console=console) as live:
        live.update(a_busy_study())
        live.event(study_event("shape_started", {"shape": "d_model=64", "seconds": 10.0, "worker": 1}))
        live.refresh()
        assert "calibrating d_model=64" in out.getvalue()
        live.event(study_event("worker_died", {"worker": 1, "how": "killed by SIGKILL", "action": "a new worker replaces it"}))
        live.refresh()
    shown = out.getvalue()
    assert "6 of 20 trials" in shown
    assert "best mse 0.4, trial 5" in shown
    assert "worker 1 killed by SIGKILL" in shown


def test_the_study_page_is_complete_and_self_contained() -> None:
    text = page(a_busy_study(), {"learning_rate": 0.7, "d_model": 0.3}, ".batchcal/first.journal")
    read = _Page()
    read.feed(text)
    read.close()
    assert text.count("<svg") == 4 + 3, "values, coordinates, memory, curves; all but the coordinates also for narrow screens"
    assert "70%" in text
    assert "the study allows 2,000,000" in text
    assert "http" not in text, "nothing from elsewhere"


def test_a_page_without_importances_shows_the_reason() -> None:
    assert "too few trials are complete" in page(a_busy_study(), {}, ".batchcal/first.journal")


def test_the_study_page_escapes_names_from_a_config() -> None:
    odd: dict[str, Scalar] = {"<b>": "<script>", "rate": 0.1}
    seen = a_study(a_trial(0, parameters=odd), a_trial(1, parameters=odd))
    text = page(seen, {"<b>": 1.0}, "<where>")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_parallel_coordinates_need_two_trials() -> None:
    assert parallel_svg.draw(a_study(a_trial(0))) == ""
    assert parallel_svg.draw(a_study(a_trial(0), a_trial(1))).count("<polyline") == 2


def test_the_json_document_of_a_study_contains_every_trial() -> None:
    told = json.loads(document.study(a_busy_study(), "x.journal"))
    assert told["kind"] == "study-view"
    assert len(told["trials"]) == 10
    assert told["best"]["number"] == 5
    assert told["counts"]["pruned"] == 2
