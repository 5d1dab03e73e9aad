"""The rule that a task's batch sizes follow is found in few trials, whatever the rule is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.measure.search.size_trials import MOST_TRIALS, SizeTrials, Trial

CEILING = 5000
Takes = Callable[[int, int], bool]
"""(size, size of the warm-up in the same process) -> whether the task runs it."""


def by(rule: SizeRule) -> Takes:
    return lambda size, warm_up: rule.admits(size) and (not rule.one_size or size == warm_up)


def explore(trials: SizeTrials, around: int, takes: Takes, *, ceiling: int = CEILING) -> list[Trial]:
    """Runs what is asked; `around` was refused or is still to be tried."""
    ran: list[Trial] = []
    while (trial := trials.next(around, ceiling)) is not None:
        assert trial not in ran, "no trial tells anything a second time"
        assert 1 < trial.batch <= ceiling
        ran.append(trial)
        assert len(ran) <= MOST_TRIALS
        warm_up = trial.batch if trial.one_size else trials.smallest
        trials.add(trial.batch, accepted=takes(trial.batch, warm_up), one_size=trial.one_size)
    return ran


def smallest_of(rule: SizeRule) -> int:
    """What the examination ran: two samples where the task takes them."""
    return next(size for size in range(2, 10_000) if rule.admits(size))


def learned(rule: SizeRule, around: int, *, ceiling: int = CEILING) -> SizeTrials:
    smallest = smallest_of(rule)
    trials = SizeTrials(smallest)
    if smallest > 2:
        trials.add(2, accepted=False, one_size=True)  # the examination's first attempt
    if around not in (smallest, 2) and not by(rule)(around, smallest):
        trials.add(around, accepted=False, one_size=False)
    explore(trials, around, by(rule), ceiling=ceiling)
    return trials


@pytest.mark.parametrize("refused", [119, 3, 1273])
def test_a_rule_of_even_sizes_is_detected(refused: int) -> None:
    rule = learned(SizeRule(multiple_of=2, least=2), refused).rule
    assert rule is not None
    assert (rule.multiple_of, rule.least, rule.most, rule.one_size) == (2, 2, None, False)
    assert rule.text == "accepts only even batches"


@settings(max_examples=200, deadline=None)
@given(multiple=st.integers(2, 64), refused=st.integers(3, CEILING))
def test_a_rule_of_multiples_is_detected(multiple: int, refused: int) -> None:
    truth = SizeRule(multiple_of=multiple, least=multiple)
    around = refused if refused % multiple else smallest_of(truth) + 1
    rule = learned(truth, around).rule
    assert rule is not None
    assert (rule.multiple_of, rule.most, rule.one_size) == (multiple, None, False)
    assert all(rule.admits(size) == truth.admits(size) for size in range(1, 300))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(3, 2000))
def test_a_rule_of_one_fixed_size_is_detected(size: int) -> None:
    rule = learned(SizeRule(least=size, most=size), size + 1).rule
    assert rule is not None
    assert rule.fixed == size
    assert rule.text == f"accepts only batches of {size}"
    assert f"--multiple-of {size} --max-batch {size}" in rule.sentence


@settings(max_examples=100, deadline=None)
@given(least=st.integers(3, 200))
def test_a_rule_of_a_minimum_size_is_detected(least: int) -> None:
    rule = learned(SizeRule(least=least), least + 1).rule
    assert rule is not None
    assert (rule.multiple_of, rule.least, rule.most) == (1, least, None)
    assert rule.text == f"accepts only batches of {least} or more"


@settings(max_examples=200, deadline=None)
@given(most=st.integers(4, 2000), refused=st.integers(5, CEILING))
def test_a_rule_of_a_maximum_size_is_detected(most: int, refused: int) -> None:
    truth = SizeRule(most=most)
    trials = learned(truth, max(refused, most + 1))
    rule = trials.rule
    assert rule is not None
    assert (rule.multiple_of, rule.least, rule.one_size) == (1, 1, False)
    assert rule.most is not None
    assert rule.most <= most
    # The search continues below; a refusal there needs no further trial.
    for size in (most // 2, most, most + 1):
        takes = truth.admits(size)
        trials.add(size, accepted=takes, one_size=False)
        assert takes or explore(trials, size, by(truth)) == []
    assert trials.rule is not None
    assert trials.rule.most == most


@settings(max_examples=100, deadline=None)
@given(refused=st.integers(3, CEILING))
def test_a_rule_of_one_size_per_process_is_detected(refused: int) -> None:
    rule = learned(SizeRule(one_size=True), refused).rule
    assert rule is not None
    assert rule == SizeRule(one_size=True)
    assert rule.text == "accepts only one batch size per process"


def test_a_rule_of_multiples_with_one_size_per_process_is_detected() -> None:
    truth = SizeRule(one_size=True, multiple_of=2, least=2)
    trials = learned(truth, 120)
    assert trials.one_size
    trials.add(118, accepted=True, one_size=True)
    trials.add(119, accepted=False, one_size=True)
    ran = explore(trials, 119, by(truth))
    assert all(trial.one_size for trial in ran)
    assert trials.rule == truth


def test_trials_near_a_rejected_size_come_first() -> None:
    trials = SizeTrials(2)
    trials.add(1274, accepted=False, one_size=False)
    ran = explore(trials, 1274, lambda size, warm_up: size <= 100)
    assert [trial.batch for trial in ran[:3]] == [1273, 1272, 1024]
    assert not any(trial.one_size for trial in ran)


@pytest.mark.parametrize(("given_multiple", "around"), [(2, 3), (32, 31), (32, 33), (100, 99)])
def test_a_given_multiple_becomes_a_rule_after_another_size_is_rejected(given_multiple: int, around: int) -> None:
    trials = SizeTrials(given_multiple, multiple_of=given_multiple)
    trials.add(around, accepted=False, one_size=False)
    rule = trials.rule
    assert rule is not None
    assert rule.multiple_of == given_multiple
    assert rule.most is None


def test_a_given_multiple_that_the_task_does_not_need_is_not_a_rule() -> None:
    trials = SizeTrials(8, multiple_of=8)
    explore(trials, 9, lambda size, warm_up: True)
    assert trials.rule is None


def test_sizes_without_a_rule_end_the_trials_without_a_rule() -> None:
    """Such as a task that fails on what some samples hold."""
    trials = SizeTrials(2)
    takes: Takes = lambda size, warm_up: size % 3 != 0 and size % 5 != 0  # noqa: E731
    trials.add(30, accepted=False, one_size=False)
    explore(trials, 30, takes)
    trials.add(45, accepted=False, one_size=False)
    explore(trials, 45, takes)
    trials.add(60, accepted=False, one_size=False)
    assert explore(trials, 60, takes) == []
    assert trials.rule is None


def test_no_trial_is_above_the_ceiling() -> None:
    trials = SizeTrials(32, multiple_of=32)
    ran = explore(trials, 31, lambda size, warm_up: size == 32, ceiling=32)
    assert [trial.batch for trial in ran] == [31]
    rule = trials.rule
    assert rule is not None
    assert rule.multiple_of == 32


@pytest.mark.parametrize(("size", "largest"), [(100, 96), (32, 32), (31, 0), (4000, 128)])
def test_at_most_returns_the_largest_size_that_a_rule_accepts(size: int, largest: int) -> None:
    rule = SizeRule(multiple_of=32, least=32, most=128)
    assert rule.at_most(size) == largest
    assert largest == 0 or rule.admits(largest)
