"""Which parameters of a study matter."""

from __future__ import annotations

from typing import Final

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

LEAST: Final = 8
"""Complete trials below which nothing can be said."""


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in what sets the best trials apart from the others, the largest first; they add up to 1.

    By PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255). Empty where too few trials are complete.
    """
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < LEAST:
        return {}
    try:
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
    except (ValueError, RuntimeError):  # all trials are as good, or no parameter was sampled in all of them
        return {}
