"""What a person sees, at 80 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal, get_args

import pytest
from rich.console import Console, RenderableType

from batchcal.calibration.records.promises import PromiseCheck, PromiseName
from batchcal.calibration.records.time_slices import TimedPart, TimeSlice
from batchcal.calibration.records.undone import Undone
from batchcal.calibration.schema import Calibration, Capacity
from batchcal.calibration.stale import Stale
from batchcal.cli.views import environment as environment_view
from batchcal.cli.views.calibration import plan as plan_view
from batchcal.cli.views.calibration.decisions import PARTS, PROMISES, decisions
from batchcal.cli.views.calibration.page import page
from batchcal.cli.views.calibration.view import ShownCalibration, answer, memory_parts, show
from batchcal.cli.views.charts.canvas import Canvas
from batchcal.cli.views.charts.memory import memory_chart
from batchcal.cli.views.charts.plot import Axis
from batchcal.cli.views.charts.plot_text import draw
from batchcal.cli.views.run import result as training_view
from batchcal.cli.views.words import count, limit_sentence, long, short, tone
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import Accelerator
from batchcal.guard.outcome import (
    Infrastructure,
    KilledFromOutside,
    Outcome,
    OutOfMemory,
    Peak,
    Suspect,
    Swapping,
    TimedOut,
    UserCodeFailed,
    WorkerDied,
)
from batchcal.measure.observations import summed_up
from batchcal.plan.make import make_plan
from batchcal.plan.what_if import what_if
from batchcal.train.result import EpochResult, TrainingResult
from tests.support.calibrations import MADE_AT, a_calibration, a_finding, an_environment, fits, measurement
from tests.support.plans import a_plan
from tests.support.races import a_raced_calibration

GOLDEN = Path(__file__).parent / "golden"
WIDTH = 80


def text_of(renderables: Iterable[RenderableType], *, width: int = WIDTH, encoding: str = "utf-8") -> str:
    """As it is printed where no terminal is."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    console = Console(file=file, width=width, highlight=False, emoji=False, markup=False)
    for renderable in renderables:
        console.print(renderable)
    file.flush()
    return "\n".join(line.rstrip() for line in raw.getvalue().decode(encoding).splitlines()) + "\n"


def seen(
    calibration: Calibration | None = None, *, stale: Stale | None = None, path: str | None = "/app/made.json"
) -> ShownCalibration:
    return ShownCalibration(
        calibration=calibration or a_calibration(),
        path=None if path is None else Path(path),
        stale=stale,
        at=MADE_AT + timedelta(hours=5),
    )


VIEWS: dict[str, Iterable[RenderableType]] = {
    "show.txt": list(show(seen(a_raced_calibration()), why=True)),
    "plan.txt": list(plan_view.show(make_plan(a_raced_calibration(), effective_batch=1000))),
    "what-if.txt": list(plan_view.show_predictions(what_if(a_calibration(), [256 * MIB, 2 * GIB, 8 * GIB]))),
    "detect.txt": list(environment_view.show(an_environment())),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_matches_the_golden_file(name: str) -> None:
    assert text_of(VIEWS[name]) == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_view_fits_the_terminal_width_and_has_no_escape_codes_in_a_pipe(name: str, width: int) -> None:
    text = text_of(VIEWS[name], width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text


def test_a_calibration_view_uses_plain_characters_without_unicode() -> None:
    text = text_of(answer(seen()), encoding="ascii")
    assert "?" not in text, "nothing had to be replaced"
    assert "# result" in text
    assert "x too large" in text


def test_the_header_of_a_stale_calibration_shows_the_reason() -> None:
    text = text_of(show(seen(stale=Stale(reason="other-memory", detail="measured under 1.00 GiB, now it is 2.00 GiB"))))
    assert "stale: other-memory" in text.splitlines()[0]
    assert "measured under 1.00 GiB, now it is 2.00 GiB" in text


def test_an_unsettled_calibration_shows_its_unfinished_parts() -> None:
    unsettled = a_calibration(status="unsettled", undone=(Undone(part="search", text="cpu under default, train: bisect 528"),))
    text = text_of(show(seen(unsettled)))
    assert "unsettled: verified, but the search for better settings did not finish" in text
    assert "not finished: cpu under default, train: bisect 528" in text


def test_an_unfinished_search_shows_the_size_predicted_to_fit() -> None:
    nine = Capacity(
        batch=9,
        peak_bytes=300 * MIB,
        samples_per_s=900.0,
        measured_by=2,
        limited_by="time-limit",
        undone="a batch of 36 was next",
    )
    found = a_finding(train=nine)
    text = " ".join(text_of(show(seen(a_calibration(status="unsettled", findings=(found,))))).split())
    assert "limited by the time limit (a batch of 36 was next); about " in text
    assert "predicted" in text


def test_a_calibration_without_a_verified_size_shows_its_probes() -> None:
    partial = a_calibration(status="partial", findings=(), measurements=(measurement(),))
    text = text_of(show(seen(partial, path=None)))
    assert "no batch size is verified yet" in text
    assert "not saved" in text
    assert "profile" in text


def test_an_empty_calibration_can_be_displayed() -> None:
    empty = a_calibration(status="partial", findings=(), measurements=(), facts=None, budgets=(), notes=())
    assert "no batch size is verified yet" in text_of(show(seen(empty), why=True))
    assert "ended before a batch size was verified" in page(seen(empty))


def test_other_allocators_are_listed_below_the_result() -> None:
    train = Capacity(batch=640, peak_bytes=800 * MIB, samples_per_s=2100.0, measured_by=5, limited_by="memory")
    both = a_calibration(findings=(a_finding(), a_finding(allocator="tcmalloc", train=train)))
    assert "cpu, tcmalloc: train 640, eval 360, 2,100 samples/s" in text_of(answer(seen(both)))


def test_the_parts_of_the_memory_bar_sum_to_the_limit() -> None:
    calibration = a_calibration()
    parts = memory_parts(calibration, calibration.findings[0])
    assert [name for name, _ in parts] == ["other processes", "without a batch", "batch", "spare", "margin"]
    assert sum(size for _, size in parts) == pytest.approx(calibration.budgets[0].limit_bytes)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_memory_reserved_for_growth_is_a_part_of_the_bar(encoding: str) -> None:
    plain = a_calibration()
    budget = plain.budgets[0]
    smaller = budget.model_copy(update={"budget_bytes": budget.budget_bytes - 8 * MIB, "reserved_bytes": 8 * MIB})
    calibration = a_calibration(budgets=(smaller,))
    assert "growth 8.00 MiB" in text_of(show(seen(calibration)), encoding=encoding)
    assert 'class="growth"' in page(seen(calibration))


def test_expected_heap_growth_is_a_part_of_the_bar() -> None:
    calibration = a_calibration(findings=(a_finding(heap_growth=1.1),))
    parts = dict(memory_parts(calibration, calibration.findings[0]))
    assert parts["growth"] > 0
    assert sum(parts.values()) == pytest.approx(calibration.budgets[0].limit_bytes)


def test_an_out_of_memory_probe_is_drawn_at_or_above_the_budget() -> None:
    calibration = a_calibration()
    chart = memory_chart(calibration, calibration.findings[0])
    assert chart is not None
    too_large = [mark for mark in chart.marks if mark.kind == "too-large"]
    assert {mark.x for mark in too_large} == {544}
    assert all(mark.y >= chart.rules[0].y for mark in too_large)
    assert [(mark.x, mark.label) for mark in chart.marks if mark.kind == "result"] == [(512, "512"), (360, "360")]


def test_a_limit_far_above_the_memory_curve_is_not_drawn() -> None:
    calibration = a_calibration()
    budget = calibration.budgets[0].model_copy(update={"limit_bytes": 64 * GIB})
    chart = memory_chart(calibration.model_copy(update={"budgets": (budget,)}), calibration.findings[0])
    assert chart is not None
    assert [rule.name for rule in chart.rules] == ["budget"]
    assert chart.y.high < 2 * GIB


def test_a_budget_far_above_the_memory_curve_is_only_in_the_title() -> None:
    calibration = a_calibration()
    budget = calibration.budgets[0].model_copy(update={"limit_bytes": 24 * GIB, "budget_bytes": 20 * GIB})
    probes = tuple(probe for probe in calibration.measurements if probe.batch != 544)
    calibration = calibration.model_copy(update={"budgets": (budget,), "measurements": probes})
    chart = memory_chart(calibration, calibration.findings[0])
    assert chart is not None
    assert chart.rules == ()
    assert "budget 20.0 GiB" in chart.title
    assert chart.y.high < 1 * GIB


@pytest.mark.parametrize("promise", get_args(PromiseName))
@pytest.mark.parametrize("result", ["ok", "violated", "not-checked"])
def test_every_promise_can_be_shown(promise: PromiseName, result: Literal["ok", "violated", "not-checked"]) -> None:
    calibration = a_calibration(promises=(PromiseCheck(promise=promise, result=result, cause="a cause"),))
    assert PROMISES[promise] in page(seen(calibration))


def test_train_and_eval_curves_differ_without_color() -> None:
    calibration = a_calibration()
    chart = memory_chart(calibration, calibration.findings[0])
    assert chart is not None
    assert [series.shape for series in chart.series] == ["line", "dashes"]
    legend = [line.plain.strip() for line in draw(chart, width=60, height=14)[17:]]
    assert " ".join(legend) == "⠒⠒ train  ⠒ ⠒ eval  ● fits  ✗ too large  ◆ result"
    assert all(line.cell_len <= 60 for line in draw(chart, width=60, height=14))


def test_an_inconclusive_probe_has_its_own_mark() -> None:
    odd = measurement(sequence=7, batch=100, predicted_bytes=400 * MIB, outcome=TimedOut(phase="measure", limit_s=10))
    blind = measurement(sequence=8, batch=100, outcome=KilledFromOutside(signal=9))
    calibration = a_calibration()
    calibration = calibration.model_copy(update={"measurements": (*calibration.measurements, odd, blind)})
    chart = memory_chart(calibration, calibration.findings[0])
    assert chart is not None
    inconclusive = [mark for mark in chart.marks if mark.kind == "inconclusive"]
    assert [mark.text.partition(",")[0] for mark in inconclusive] == ["probe 7"], "what has no height is not drawn"
    assert "? inconclusive" in "\n".join(line.plain for line in draw(chart, width=WIDTH, height=14))


def test_a_line_on_the_canvas_has_no_gaps() -> None:
    canvas = Canvas(40, 10)
    canvas.line([(0.0, 0.0), (1.0, 1.0)], "")
    rows = [row.plain for row in canvas.rows()]
    columns = ["".join(row[column] for row in rows).strip() for column in range(40)]
    assert all(columns)


def test_lines_outside_the_canvas_are_not_drawn() -> None:
    canvas = Canvas(10, 4)
    canvas.line([(0.5, 1.5), (0.5, 2.0)], "")
    assert "".join(row.plain for row in canvas.rows()).strip() == ""


def test_tick_labels_are_unique() -> None:
    labels = [text for _, text in Axis(1.0, 1.0004, "number").labels(10)]
    assert len(labels) == len(set(labels))


OUTCOMES: dict[str, tuple[Outcome, str, str]] = {
    "fits": (fits(277, 640.0, batch=8), "good", "3 steps of 12 ms"),
    "fence": (OutOfMemory(source="fence", detail="no memory\nat all"), "bad", "(stopped by the fence, RLIMIT_DATA): no memory"),
    "budget": (OutOfMemory(source="budget", peak=Peak(demand_bytes=1)), "bad", "ran, but with a peak above the budget"),
    "swapping": (Swapping(swapped_bytes=3 * MIB), "bad", "3.00 MiB were swapped out"),
    "timed out": (TimedOut(phase="warm-up", limit_s=10), "odd", "timed out in warm-up after 10.0 s"),
    "user": (UserCodeFailed(phase="measure", error="ValueError: no"), "odd", "the task's code failed: ValueError: no"),
    "worker": (WorkerDied(detail="killed"), "odd", "a worker died: killed"),
    "outside": (KilledFromOutside(signal=9), "odd", "killed by signal 9, which batchcal did not send"),
    "suspect": (Suspect(detail="SIGSEGV", near_limit=0.99), "bad", "died at 99% of its memory limit: SIGSEGV"),
    "ours": (Infrastructure(detail=""), "odd", "batchcal failed"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_has_a_description(name: str) -> None:
    outcome, expected_tone, words = OUTCOMES[name]
    assert tone(outcome) == expected_tone
    assert words in long(outcome)
    assert 0 < len(short(outcome)) <= 26


def test_counts_are_rounded_and_have_thousands_separators() -> None:
    assert [count(number) for number in (7, 60_000, 39.44, 0.5, 1530.2)] == ["7", "60,000", "39.4", "0.5", "1,530"]


def test_the_reason_for_a_limit_names_the_size_that_does_not_fit() -> None:
    calibration = a_calibration()
    assert limit_sentence(calibration, calibration.findings[0]) == "memory: 544 does not fit"
    fitting_only = tuple(one for one in calibration.measurements if one.outcome.kind == "fits")
    calm = calibration.model_copy(update={"measurements": fitting_only})
    assert limit_sentence(calm, calm.findings[0]) == "memory: a larger batch is predicted not to fit"


def test_a_size_that_fits_only_for_a_few_steps_is_explained() -> None:
    grown = a_finding(heap_growth=1.3)
    fitted = measurement(sequence=7, batch=530, outcome=fits(830, 1530.0, batch=530))
    calibration = a_calibration(findings=(grown,), measurements=(*a_calibration().measurements, fitted))
    assert limit_sentence(calibration, grown) == "memory: 530 fits for a few steps, but the heap grows over many steps"
    reasons = dict(decisions(calibration))
    assert "1.30 times" in reasons["why not all of the budget on cpu with allocator default"]


def test_the_reasons_show_repeated_peaks_and_the_time_of_each_part() -> None:
    runs = [measurement(batch=64, outcome=fits(mebibytes, 640.0, batch=64)) for mebibytes in (400, 420)]
    slices = (TimeSlice(part="examination", wall_s=1.5), TimeSlice(part="rehearsal", wall_s=3.0))
    calibration = a_calibration(setups=summed_up(runs, num_workers=0), time_slices=slices, wall_s=10.0)
    reasons = dict(decisions(calibration))
    question = "how much 2 training runs of batch 64 differ on cpu with allocator default"
    assert reasons[question] == "2 fit, peaks from 400 MiB to 420 MiB"
    assert set(PARTS) == set(get_args(TimedPart)), "each part has words"
    assert reasons["how the 10.0 s were used"] == "loading and examining the task 1.5 s, the rehearsal 3.0 s, the rest 5.5 s"


def test_a_plan_groups_equal_micro_batch_sizes() -> None:
    assert plan_view.in_runs((25, 24, 24, 24)) == "25 + 3 x 24"
    assert plan_view.in_runs((512,)) == "512"


def test_the_plan_view_shows_notices() -> None:
    assert "less is free now" in text_of(plan_view.show(a_plan(8, notices=("less is free now",))))


def test_accelerators_are_listed_with_their_free_memory() -> None:
    card = Accelerator(
        kind="cuda", index=0, name="H200", total_bytes=140 * GIB, free_bytes=100 * GIB, capability="9.0", mig=False
    )
    text = text_of(environment_view.show(an_environment(accelerators=(card,), accelerators_asked=True)))
    assert re.search(r"cuda:0 +100 GiB of 140 GiB free +H200, capability 9\.0", text)


def test_the_training_view_compares_the_epochs_with_the_plan() -> None:
    epochs = tuple(
        EpochResult(epoch=at, loss=1.5 - at, evaluation={"accuracy": 0.9}, steps=10, samples=80, wall_s=2.0, samples_per_s=40.0)
        for at in range(2)
    )
    result = TrainingResult(
        epochs=epochs, samples_per_s=40.0, peak_bytes=290_000_000, accelerator_peak_bytes=None, wall_s=4.2, resumed_at_epoch=None
    )
    text = text_of(training_view.show(result, a_plan(8)))
    assert re.search(r"1 +1\.5000 +0\.9000 +10 +40 +2\.0 s", text)
    assert "40 samples/s, peak 277 MiB  (286 MiB predicted, 763 MiB budget)" in text


class _Page(HTMLParser):
    """Collects what a page would fetch, and whether its elements are closed."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.fetched += [f"{name}={value}" for name, value in attrs if name in {"src", "href", "xlink:href", "data"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_calibration_page_is_self_contained_and_supports_dark_mode() -> None:
    html = page(seen())
    parsed = _Page()
    parsed.feed(html)
    assert parsed.open == []
    assert parsed.fetched == []
    assert "svg" in parsed.seen
    assert not {"script", "link", "img", "iframe"} & set(parsed.seen)
    assert not re.findall(r"https?://|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html


def test_the_page_shows_the_result_the_probes_and_the_reasons() -> None:
    html = page(seen(stale=Stale(reason="expired", detail="made long ago")))
    wanted = ("512", "360", "killed by SIGSEGV", "why a budget of 839 MiB on cpu", "expired: made long ago", "DataLoader workers")
    assert [told for told in wanted if told not in html] == []
    assert html.count('class="mark') == 2 * 6, "for wide and for narrow screens"
    assert html.count("<tr>") == 1 + 6


def test_the_calibration_page_escapes_text_from_the_user() -> None:
    calibration = a_calibration(notes=("<script>alert(1)</script>",))
    task = calibration.task.model_copy(update={"spec": "a<b>&'\".py:task"})
    html = page(seen(calibration.model_copy(update={"task": task})))
    assert "<script" not in html
    assert "a&lt;b&gt;&amp;" in html
