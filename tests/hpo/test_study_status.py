"""What is told of a study."""

from __future__ import annotations

import pytest

from tests.support.studies import a_busy_study, a_study, a_trial


def test_a_trial_that_was_run_twice_counts_once() -> None:
    seen = a_busy_study()
    assert seen.done == 6
    assert seen.counts()["lost"] == 1


def test_the_best_trial_is_the_first_complete_trial_with_the_best_value() -> None:
    trials = (
        a_trial(0, values=(0.5,)),
        a_trial(1, values=(0.3,)),
        a_trial(2, values=(0.3,)),
        a_trial(3, "pruned", values=(0.1,)),
    )
    best = a_study(*trials).best()
    assert best is not None
    assert best.number == 1
    assert a_study(a_trial(0, "pruned")).best() is None


def test_the_time_saved_by_pruning_uses_the_pace_of_each_trial() -> None:
    seen = a_study(a_trial(0, "pruned", values=(0.9,), wall_s=2.0), a_trial(1, "pruned", values=(0.9, 0.8, 0.7), wall_s=30.0))
    assert seen.saved_epochs() == 8 + 6
    assert seen.saved_s() == pytest.approx(8 * 2.0 + 6 * 10.0)


def test_the_remaining_time_is_divided_by_the_running_trials() -> None:
    ended = [a_trial(number, wall_s=20.0) for number in range(4)]
    assert a_study(*ended, wanted=10).left_s() is None, "nothing runs"
    one = a_study(*ended, a_trial(4, "running"), wanted=10)
    two = a_study(*ended, a_trial(4, "running"), a_trial(5, "running"), wanted=10)
    assert one.left_s() == pytest.approx(6 * 20.0)
    assert two.left_s() == pytest.approx(6 * 20.0 / 2)
    assert a_study(a_trial(0, "stopped", wall_s=1.0), a_trial(1, "running")).left_s() is None, "who was stopped tells no pace"


def test_the_error_of_the_predicted_memory_is_a_median() -> None:
    assert a_study(a_trial(0), a_trial(3), a_trial(12)).prediction_error() == pytest.approx(9 / 300)
