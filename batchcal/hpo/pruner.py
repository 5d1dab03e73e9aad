"""When a trial is given up: Hyperband, and patience beside it."""

from __future__ import annotations

import math
from typing import Final

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from batchcal.hpo.config import PrunerSettings

BOOTSTRAP: Final = 10
"""Trials at a rung before anything is pruned there, as asked for; where the study is large enough for it."""
LARGE_ENOUGH: Final = 2
"""A study with so many times the trials that are spent on filling every rung of every bracket can afford that."""


class PatientHyperband(HyperbandPruner):
    """Hyperband that also gives up what has not become better for `patience` reports, where another trial is better.

    A trial that leads is not given up for standing still: it has come as far as it gets, and ends by early stopping, complete.
    With patience alone every curve that levels out is pruned, and a study of such curves completes none.

    A subclass and no `PatientPruner` around it: samplers of Optuna look for the class, to learn from trials of the same bracket,
    and PatientPruner keeps Hyperband from pruning as long as a curve still falls.
    """

    def __init__(
        self,
        *,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 3,
        bootstrap_count: int = 0,
        patience: int | None = None,
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(
            min_resource=min_resource,
            max_resource=max_resource,
            reduction_factor=reduction_factor,
            bootstrap_count=bootstrap_count,
        )
        self._patience, self._min_delta = patience, min_delta

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if super().prune(study, trial):
            return True
        return plateaued(study, trial, self._patience, self._min_delta) and not _leads(study, trial)


def _leads(study: Study, trial: FrozenTrial) -> bool:
    """Whether no other trial has come as far."""
    others = (one for one in study.get_trials(deepcopy=False) if one.number != trial.number)
    best = min((min(_values(study, one)) for one in others if one.intermediate_values), default=math.inf)
    return min(_values(study, trial)) <= best


def _values(study: Study, trial: FrozenTrial) -> list[float]:
    """What the trial reported, in order; smaller is better."""
    sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
    return [sign * trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]


def plateaued(study: Study, trial: FrozenTrial, patience: int | None, min_delta: float) -> bool:
    """Whether none of the latest `patience` reports was better than the best before them, by more than `min_delta`."""
    if patience is None:
        return False
    values = _values(study, trial)
    if len(values) <= patience:
        return False
    return min(values[-patience:]) >= min(values[:-patience]) - min_delta


def make_pruner(settings: PrunerSettings, *, resource: int, trials: int) -> tuple[BasePruner, str]:
    """The pruner, and a sentence on what was decided about it; empty: nothing was.

    Args:
        resource: the most that a trial reports: epochs, or folds.
        trials: of the study.
    """
    if settings.name == "none":
        return NopPruner(), ""
    if settings.name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=settings.min_resource), ""
    if settings.name == "halving":
        halving = SuccessiveHalvingPruner(
            min_resource=settings.min_resource, reduction_factor=settings.reduction_factor, bootstrap_count=0
        )
        return halving, ""
    bootstrap, why = _bootstrap(settings, resource, trials)
    pruner = PatientHyperband(
        min_resource=settings.min_resource,
        max_resource=max(resource, settings.min_resource),
        reduction_factor=settings.reduction_factor,
        bootstrap_count=bootstrap,
        patience=settings.patience,
        min_delta=settings.min_delta,
    )
    return pruner, why


def _bootstrap(settings: PrunerSettings, resource: int, trials: int) -> tuple[int, str]:
    """bootstrap_count: what is asked for, else 10 where that many trials at every rung are few of all there will be.

    With it the first ten that reach a rung are all pruned there, in every bracket: nothing is promoted before it has rivals. In a
    study of 40 trials and 27 epochs that leaves none that is complete.
    """
    if settings.bootstrap_count is not None:
        return settings.bootstrap_count, ""
    rungs = 1 + math.floor(math.log(max(resource / settings.min_resource, 1), settings.reduction_factor) + 1e-9)
    spent = BOOTSTRAP * rungs * (rungs + 1) // 2
    if trials >= LARGE_ENOUGH * spent:
        return BOOTSTRAP, ""
    return 0, f"bootstrap_count is 0: with {BOOTSTRAP} the first {spent} trials to reach a rung would all be pruned, of {trials}"
