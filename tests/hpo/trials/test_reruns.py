"""Which trials count, and which are run again; on a study in memory."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from batchcal.hpo.trials.reruns import AGAIN, RETRIES, STOPPED, SURPLUS, came_too_late, counted, run_again, to_be_run


def a_study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study()


def begun(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    return trial


def lost(study: optuna.Study, trial: optuna.Trial) -> None:
    """Its worker died."""
    study.tell(trial, state=TrialState.FAIL)
    run_again(study, study.get_trials(deepcopy=False)[trial.number])


def test_a_rerun_has_the_same_parameters_and_does_not_count() -> None:
    study = a_study()
    first = begun(study)
    assert not to_be_run(study.get_trials(), 1)
    lost(study, first)
    assert to_be_run(study.get_trials(), 1), "it waits"
    second = begun(study)
    assert second.params == first.params
    assert second.user_attrs[AGAIN] == first.number
    assert len(counted(study.get_trials())) == 1


def test_a_trial_that_kills_its_workers_has_limited_retries() -> None:
    study = a_study()
    for _ in range(RETRIES + 1):
        lost(study, begun(study))
    assert not to_be_run(study.get_trials(), 1)
    assert len(study.get_trials()) == RETRIES + 1


def test_a_stopped_trial_always_runs_again() -> None:
    study = a_study()
    for _ in range(2 * RETRIES):
        trial = begun(study)
        trial.set_user_attr(STOPPED, True)
        lost(study, trial)
    assert to_be_run(study.get_trials(), 1)


def test_a_lost_trial_is_queued_once() -> None:
    study = a_study()
    trial = begun(study)
    lost(study, trial)
    run_again(study, study.get_trials()[trial.number])
    assert len(study.get_trials()) == 2


def test_only_the_first_of_two_workers_gets_the_last_trial() -> None:
    study = a_study()
    first, second = begun(study), begun(study)
    trials = study.get_trials()
    assert not came_too_late(trials, first.number, 1)
    assert came_too_late(trials, second.number, 1)
    second.set_user_attr(SURPLUS, True)
    assert len(counted(study.get_trials())) == 1
