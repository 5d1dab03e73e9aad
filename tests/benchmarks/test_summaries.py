"""What the benchmarks make of their rows, on rows whose summary is known."""

from __future__ import annotations

import pytest

from tests.benchmarks.finders import advantage, summarised
from tests.benchmarks.pipeline import summary_of as pipeline_summary
from tests.benchmarks.prediction import percentile
from tests.benchmarks.prediction import summary_of as prediction_summary
from tests.benchmarks.soak import summary_of as soak_summary


def finder_row(finder: str, answer: int | None, wall_s: float, *, survived: bool = True) -> dict[str, object]:
    return {
        "limit": "1GiB",
        "regime": "rlimit-data",
        "finder": finder,
        "survived": survived,
        "oom_kills": 0 if survived else 1,
        "answer": answer,
        "was_run": None if answer is None else answer == 100,
        "wall_s": wall_s,
        "last_words": "" if survived else "Killed",
    }


def test_rounds_of_a_finder_are_summarized_as_medians() -> None:
    rows = [finder_row("batchcal", 100, wall) for wall in (9.0, 1.0, 2.0)] + [finder_row("accelerate", None, 3.0, survived=False)]
    ours, theirs = summarised(rows)
    assert (ours["wall_s"], ours["answer"], ours["survived"], ours["was_run"]) == (2.0, 100, "3/3", True)
    assert (theirs["survived"], theirs["answer"], theirs["oom_kills"], theirs["last_words"]) == ("0/1", None, 1, "Killed")


def test_the_advantage_is_reported_only_if_both_finders_have_an_answer() -> None:
    rows = summarised([finder_row("batchcal", 100, 2.0), finder_row("lightning binsearch", 80, 7.0)])
    assert list(advantage(rows).values()) == [3.5, 1.25]
    dead = summarised([finder_row("batchcal", 100, 2.0), finder_row("lightning binsearch", None, 7.0, survived=False)])
    assert advantage(dead) == {}


def test_a_soak_summary_adds_up_cells_and_counts_broken_cells() -> None:
    rows: list[dict[str, object]] = [
        {"oom_kills": 0, "outcomes": {"fits": 5, "out-of-memory": 2, "infrastructure": 1}, "counts": {"zombies": 1, "files": 0}},
        {"oom_kills": 2, "outcomes": {"fits": 1}, "counts": {"zombies": 1}},
        {"oom_kills": 0, "broken": "Killed"},
    ]
    summary = soak_summary(rows)
    assert (summary["probes"], summary["kernel_oom_kills"], summary["unclassified"]) == (9, 2, 1)
    assert (summary["left_zombies"], summary["left_files"], summary["broken_cells"]) == (2, 0, 1)


def test_prediction_errors_are_summarized_per_allocator() -> None:
    rows: list[dict[str, object]] = [
        {"allocator": "tcmalloc", "errors": [0.01, 0.012], "spread": 0.004},
        {"allocator": "tcmalloc", "errors": [0.04], "spread": 0.006},
        {"allocator": "default", "errors": [0.07], "spread": 0.08},
    ]
    summary = prediction_summary(rows)
    assert summary["tcmalloc"] == {
        "points": 3, "median_error": 0.012, "p95_error": 0.04, "median_spread": 0.005, "max_spread": 0.006, "met": True,
    }  # fmt: skip
    default = summary["default"]
    assert isinstance(default, dict)
    assert default["met"] is None


@pytest.mark.parametrize(("part", "value"), [(0.5, 5.0), (0.95, 10.0), (0.1, 1.0), (0.9, 9.0)])
def test_a_percentile_is_an_existing_value(part: float, value: float) -> None:
    assert percentile([float(number) for number in range(10, 0, -1)], part) == value


def test_a_pipeline_run_meets_the_goal_if_time_and_regret_do() -> None:
    rows: list[dict[str, object]] = [
        {"wall_s": 4.0, "regret": 0.0},
        {"wall_s": 4.5, "regret": 0.05},
        {"wall_s": 6.0, "regret": 0.01},
    ]
    summary = pipeline_summary(rows)
    assert (summary["wall_s_median"], summary["wall_s_most"], summary["regret_most"]) == (4.5, 6.0, 0.05)
    assert (summary["within_reach"], summary["runs"]) == (1, 3)
