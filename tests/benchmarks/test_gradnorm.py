"""What the benchmark of GradNorm makes of its rows, on rows whose summary is known."""

from __future__ import annotations

from tests.benchmarks.gradnorm import summed_up


def row(seed: int, arm: str, *left: float) -> dict[str, object]:
    return {"seed": seed, "arm": arm, **{f"left_T{place}": share for place, share in enumerate(left, 1)}}


def test_all_arms_are_compared_on_the_slowest_task_of_equal_weights() -> None:
    summary = summed_up(
        [
            row(0, "equal", 0.1, 0.8, 0.2),
            row(0, "ratio", 0.3, 0.4, 0.5),
            row(0, "paper", 0.1, 0.9, 0.2),
            row(1, "equal", 0.6, 0.1, 0.5),
            row(1, "ratio", 0.3, 0.1, 0.2),
            row(1, "paper", 0.3, 0.2, 0.1),
        ]
    )
    assert summary["slowest_task"] == ["T2", "T1"]
    assert summary["equal: left of the slowest task, mean"] == 0.7
    assert summary["ratio: left of the slowest task, mean"] == 0.35
    assert summary["ratio: left of whichever task has most left, mean"] == 0.4
    assert summary["ratio: slowest task's loss against equal weights, median ratio"] == 0.5
    assert (summary["ratio: better in seeds"], summary["paper: better in seeds"]) == (2, 1)
