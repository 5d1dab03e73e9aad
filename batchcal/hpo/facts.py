"""What is known of a trial besides its values and parameters, as it is kept in the study."""

from __future__ import annotations

from typing import Final

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from batchcal.core.values import Record
from batchcal.hpo.job import TrialState

ATTRIBUTES: Final = "batchcal"
"""User attribute of a trial: its facts."""
OUT_OF_MEMORY: Final = "out-of-memory"
DIVERGED: Final = "diverged"
"""Kinds: memory ran out; its loss became no number, which is bad and no failure."""


class TrialFacts(Record):
    """All absent until it is known."""

    state: TrialState | None = None
    """None: it has not ended."""
    kind: str | None = None
    """Of one that failed: `out-of-memory`, `timed-out`, `UserCodeError`, ..."""
    why: str | None = None
    traceback: str | None = None
    """Of the user's code, where that failed; its end."""
    wall_s: float | None = None
    effective_batch: int | None = None
    micro_batch: int | None = None
    accumulation_steps: int | None = None
    eval_batch: int | None = None
    predicted_peak_bytes: int | None = None
    peak_bytes: int | None = None
    budget_bytes: int | None = None
    parameters: int | None = None
    shape_measured: bool | None = None
    """Whether its shape was calibrated for it."""
    epochs: int | None = None
    """Trained, over all folds."""
    fold_values: tuple[float, ...] = ()
    stop_reason: str | None = None
    samples_per_s: float | None = None
    steps: dict[str, int] | None = None
    """Optimizer steps by the number of samples in them."""
    recoveries: int | None = None


def facts_of(trial: FrozenTrial) -> TrialFacts:
    """What is known; nothing where it is no fact of ours."""
    try:
        return TrialFacts.model_validate(trial.user_attrs.get(ATTRIBUTES, {}))
    except ValidationError:
        return TrialFacts()
