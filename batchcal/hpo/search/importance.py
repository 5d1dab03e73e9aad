"""Importance of the parameters of a study."""

from __future__ import annotations

from typing import Final

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

LEAST: Final = 8
"""Least number of complete trials for a result."""


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of each parameter in the difference between the best trials and the others, the largest first.

    The shares add up to 1. Method: PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255). Empty if too few trials are complete.
    """
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < LEAST:
        return {}
    try:
        return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
    except (ValueError, RuntimeError):  # all trials are equally good, or no parameter was sampled in all of them
        return {}
