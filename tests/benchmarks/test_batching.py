"""The contenders of the batching benchmark play by the same rules: every sample once, the same budget."""

from __future__ import annotations

import pytest

from tests.benchmarks.batching import CONTENDERS, LONGEST, lengths_of, padded, steps_of, summary_of, waste_of

BUDGET, STEP = 8 * LONGEST, 256


@pytest.mark.parametrize("name", CONTENDERS)
def test_an_epoch_has_every_sample_once_within_the_budget(name: str) -> None:
    lengths: list[int] = [64] * 4000 if name == "limit" else lengths_of(0.9, 4000).tolist()
    steps = steps_of(name, lengths, BUDGET, STEP)
    assert sorted(index for step in steps for piece in step for index in piece) == list(range(4000))
    assert max(padded(piece, lengths) for step in steps for piece in step) <= BUDGET
    assert abs(len(steps) - 4000 / STEP) < 2, "as many optimizer steps as the others"


def test_sorting_by_length_reduces_padding_waste() -> None:
    lengths: list[int] = lengths_of(0.6, 4000).tolist()
    waste = {name: waste_of(steps_of(name, lengths, BUDGET, STEP), lengths) for name in CONTENDERS}
    assert waste["max-tokens"] < waste["ours"] < waste["window-1"] < waste["random"]
    assert waste["ours"] < 0.06
    assert waste_of(steps_of("limit", [64] * 4000, BUDGET, STEP), [64] * 4000) == 0


def test_the_batching_summary_reports_the_worst_values() -> None:
    rows: list[dict[str, object]] = [
        {"sigma": 0.6, "contender": "random", "ours_is": 2.0, "against_limit": 0.4, "waste": 0.5},
        {"sigma": 0.6, "contender": "ours", "ours_is": 1.0, "against_limit": 0.9, "waste": 0.04},
        {"sigma": 0.9, "contender": "ours", "ours_is": 1.0, "against_limit": 0.8, "waste": 0.03},
    ]
    summary = summary_of(rows, [{"sampler_share": 0.001}, {"sampler_share": 0.002}])
    assert (summary["against_limit_least"], summary["waste_most"], summary["sampler_share_most"]) == (0.8, 0.04, 0.002)
    assert summary["within_reach"] is False
    assert summary["against_random_0.6"] == 2.0
