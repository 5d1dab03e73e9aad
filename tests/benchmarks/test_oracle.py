"""The brute force that judges answers is itself judged: on machines whose truth is known, and in a real group."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks._limits import python, run_limited
from tests.benchmarks._report import MIB, Journal, paired_ratio, rounds, table
from tests.benchmarks.oracle import Trial, Verdict, check_answer, largest_within

BUDGET = 1000


def trial_of(batch: int, demand: int, *, survived: bool = True) -> Trial:
    return Trial(batch, batch, survived, demand if survived else None, 0 if survived else 1, 1.0, 0.1, "")


class Machine:
    """Needs `per_sample` bytes a sample and 100 besides; every `noisy`-th run needs 50 more. Over `limit` it dies."""

    def __init__(self, per_sample: int, *, noisy: int = 0, limit: int = 10**9) -> None:
        self.per_sample, self.noisy, self.limit, self.runs = per_sample, noisy, limit, 0

    def run(self, batch: int, eval_batch: int | None = None) -> Trial:
        self.runs += 1
        demand = 100 + self.per_sample * batch + (50 if self.noisy and self.runs % self.noisy == 0 else 0)
        return trial_of(batch, demand, survived=demand <= self.limit)


@pytest.mark.parametrize("per_sample", [1, 3, 7, 100, 899, 900])
def test_the_oracle_returns_the_largest_batch_within_the_budget(per_sample: int) -> None:
    largest, trials = largest_within(Machine(per_sample).run, BUDGET)
    assert largest == (BUDGET - 100) // per_sample
    assert any(tried.batch == largest + 1 and not tried.within(BUDGET) for tried in trials)


def test_the_oracle_returns_zero_when_no_batch_fits() -> None:
    assert largest_within(Machine(901).run, BUDGET)[0] == 0


def test_a_batch_that_exceeds_the_budget_in_any_run_is_excluded() -> None:
    assert largest_within(Machine(1, noisy=3).run, BUDGET)[0] == 850


def test_a_batch_that_crashes_is_excluded() -> None:
    assert largest_within(Machine(1, limit=500).run, BUDGET)[0] == 400


def test_an_answer_close_to_the_largest_batch_is_right() -> None:
    verdict = check_answer(Machine(1).run, BUDGET, 880, runs=20)
    assert (verdict.right, verdict.survived, verdict.within_budget, verdict.beyond, verdict.beyond_exceeded) == (
        True,
        20,
        20,
        947,
        True,
    )


def test_a_too_small_answer_is_wrong() -> None:
    verdict = check_answer(Machine(1).run, BUDGET, 800, runs=5)
    assert (verdict.right, verdict.beyond_exceeded, verdict.beyond_runs) == (False, False, 5)


def test_an_answer_that_runs_out_of_memory_is_wrong() -> None:
    verdict = check_answer(Machine(1, limit=700).run, BUDGET, 650, runs=5)
    assert not verdict.right
    assert verdict.survived == 0


def test_an_answer_limited_by_the_dataset_is_checked_by_survival_only() -> None:
    verdict = check_answer(Machine(1).run, BUDGET, 100, runs=5, ask_beyond=False)
    assert verdict == Verdict(100, 108, 5, 5, 5, None, 0, 200)
    assert verdict.right


@pytest.mark.cgroup
def test_a_command_within_its_limit_survives_and_its_peak_is_recorded() -> None:
    code = f"import time; held = bytearray({100 * MIB}); time.sleep(0.3); print('held')"
    ended = run_limited(python("-c", code), limit_bytes=256 * MIB)
    assert ended.survived, ended
    assert ended.stdout.strip() == "held"
    assert 100 * MIB <= ended.group_peak_bytes < 140 * MIB


@pytest.mark.cgroup
def test_a_command_that_exceeds_its_limit_is_killed_and_counted() -> None:
    ended = run_limited(python("-c", f"held = bytearray({300 * MIB})"), limit_bytes=128 * MIB)
    assert not ended.survived
    assert (ended.oom_kills, ended.exit_code) == (1, -9)


@pytest.mark.cgroup
def test_a_command_under_an_rlimit_fails_without_being_killed() -> None:
    ended = run_limited(python("-c", f"held = bytearray({300 * MIB})"), limit_bytes=128 * MIB, regime="rlimit-data")
    assert (ended.exit_code, ended.oom_kills) == (1, 0)
    assert "MemoryError" in ended.stderr


@pytest.mark.cgroup
def test_a_command_that_exceeds_its_timeout_is_stopped() -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    ended = run_limited(python("-c", code), limit_bytes=None, timeout_s=0.5)
    assert ended.timed_out
    assert not ended.survived


def test_a_benchmark_journal_continues_after_a_truncated_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    Journal(path).add({"config": "a", "answer": 1})
    Journal(path).add({"config": "b", "answer": 2})
    with path.open("a") as file:
        file.write('{"config": "c", "ans')
    again = Journal(path)
    assert again.find(config="b") == {"config": "b", "answer": 2}
    assert again.find(config="c") is None


def test_the_table_shows_a_dash_for_a_missing_value() -> None:
    lines = table([{"name": "a", "n": 1, "ok": True}, {"name": "long", "n": None, "ok": False}]).splitlines()
    assert lines == ["name  n  ok", "a     1  yes", "long  -  no"]


def test_each_round_contains_every_name_and_ratios_are_per_round() -> None:
    order = list(rounds(["a", "b", "c"], 50))
    assert all(sorted(order[start : start + 3]) == ["a", "b", "c"] for start in range(0, 150, 3))
    assert len({tuple(order[start : start + 3]) for start in range(0, 150, 3)}) > 1
    assert paired_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 3.0]) == 2.0
