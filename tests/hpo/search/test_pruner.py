"""Trials that will not win are given up, and those that may are not."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner, HyperbandPruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from batchcal.hpo.config import PrunerSettings
from batchcal.hpo.search.pruner import PatientHyperband, make_pruner
from batchcal.hpo.trials.reruns import AGAIN

optuna.logging.set_verbosity(optuna.logging.WARNING)
EPOCHS = 27


def a_study(pruner: BasePruner, *, maximize: bool = False) -> optuna.Study:
    return optuna.create_study(
        study_name="fixed",
        sampler=RandomSampler(seed=1),
        pruner=pruner,
        direction="maximize" if maximize else "minimize",
    )


def run(study: optuna.Study, trials: int, *, sign: float = 1.0) -> tuple[int, float]:
    """Epochs that were trained, and the best value. Curves fall to a floor that the parameter decides."""
    spent = 0
    for _ in range(trials):
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        pace = random.Random(round(1e6 * x)).uniform(0.38, 0.42)
        value = math.inf
        for epoch in range(1, EPOCHS + 1):
            spent += 1
            value = (x - 0.3) ** 2 + math.exp(-pace * epoch)
            trial.report(sign * value, epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, sign * value)
    return spent, study.best_value


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_hyperband_with_patience_saves_epochs_without_a_worse_result(sign: float) -> None:
    pruner, _ = make_pruner(PrunerSettings(), resource=EPOCHS, trials=60)
    all_spent, best = run(a_study(make_pruner(PrunerSettings(name="none"), resource=EPOCHS, trials=60)[0]), 60)
    spent, found = run(a_study(pruner, maximize=sign < 0), 60, sign=sign)
    assert spent <= 0.45 * all_spent
    assert sign * found <= best + 0.01


def test_a_flat_curve_is_pruned_and_a_slowly_falling_curve_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HyperbandPruner, "prune", lambda *_: False)  # only patience speaks
    study = a_study(PatientHyperband(max_resource=EPOCHS, patience=2, min_delta=0.001))
    leading, flat, falling, second = study.ask(), study.ask(), study.ask(), study.ask()
    for epoch, value in enumerate((1.0, 0.9, 0.9, 0.8995), start=1):
        leading.report(value - 0.2, epoch)
        second.report(value - 0.1, epoch)
        flat.report(value, epoch)
        falling.report(1.0 - 0.01 * epoch, epoch)
    assert flat.should_prune()
    assert not falling.should_prune()
    assert not leading.should_prune(), "it has come as far as it gets, further than all others"
    assert not second.should_prune(), "and who is among the best third may still be the best"


def test_no_trial_is_pruned_before_min_resource() -> None:
    study = a_study(PatientHyperband(min_resource=5, max_resource=EPOCHS, patience=1))
    trials = [study.ask() for _ in range(6)]
    for epoch in (1, 2, 3, 4):
        for place, trial in enumerate(trials):
            trial.report(1.0 + place, epoch)
            assert not trial.should_prune()


def test_a_rerun_is_not_compared_with_failed_runs() -> None:
    study = a_study(PatientHyperband(max_resource=EPOCHS))
    for _ in range(4):
        died = study.ask({"x": FloatDistribution(0, 1)})
        died.report(0.1, 1)
        if died.number:
            died.set_user_attr(AGAIN, 0)
        study.tell(died, state=TrialState.FAIL)
    again = study.ask({"x": FloatDistribution(0, 1)})
    again.set_user_attr(AGAIN, 0)
    again.report(0.2, 1)
    assert not again.should_prune()


def test_only_the_best_third_continues_in_every_bracket() -> None:
    study = a_study(PatientHyperband(max_resource=EPOCHS, patience=2))
    for value in (0.1, 0.2, 0.3, 0.4):
        trial = study.ask()
        for epoch in range(1, EPOCHS + 1):
            trial.report(value, epoch)
        study.tell(trial, value)
    for _ in range(20):
        worse, better = study.ask(), study.ask()
        worse.report(0.25, 1)
        better.report(0.15, 1)
        assert worse.should_prune()
        assert not better.should_prune()
        study.tell(worse, state=TrialState.FAIL)
        study.tell(better, state=TrialState.FAIL)


def test_samplers_recognize_the_pruner_as_hyperband() -> None:
    """Optuna's samplers ask for the class."""
    assert isinstance(make_pruner(PrunerSettings(), resource=EPOCHS, trials=40)[0], HyperbandPruner)


def test_bootstrapping_is_disabled_for_small_studies_with_a_notice() -> None:
    _, small = make_pruner(PrunerSettings(), resource=EPOCHS, trials=40)
    assert small.startswith("bootstrap_count is 0")
    _, large = make_pruner(PrunerSettings(), resource=EPOCHS, trials=2_000)
    assert large == ""
    _, asked = make_pruner(PrunerSettings(bootstrap_count=10), resource=EPOCHS, trials=40)
    assert asked == ""


@pytest.mark.parametrize("name", ["hyperband", "halving", "median", "none"])
def test_a_trial_without_reports_is_never_pruned(name: str) -> None:
    pruner, _ = make_pruner(PrunerSettings.model_validate({"name": name}), resource=EPOCHS, trials=40)
    study = a_study(pruner)
    assert not study.ask().should_prune()
