"""Facts of a trial other than its values and parameters, as stored in the study."""

from __future__ import annotations

from typing import Final

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from batchcal.core.values import Record
from batchcal.hpo.trials.job import TrialState

ATTRIBUTES: Final = "batchcal"
"""User attribute of a trial: its facts."""
OUT_OF_MEMORY: Final = "out-of-memory"
DIVERGED: Final = "diverged"
"""Kinds: memory ran out; the loss became NaN or infinite, which is a bad result and not a failure."""


class TrialFacts(Record):
    """Facts of a trial. Each is absent while it is unknown."""

    state: TrialState | None = None
    """None: the trial has not ended."""
    kind: str | None = None
    """Kind of failure: `out-of-memory`, `timed-out`, `UserCodeError`, ..."""
    why: str | None = None
    traceback: str | None = None
    """End of the traceback of the user's code, if that failed."""
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
    """True if its shape was calibrated for this trial."""
    epochs: int | None = None
    """Epochs trained, over all folds."""
    fold_values: tuple[float, ...] = ()
    stop_reason: str | None = None
    samples_per_s: float | None = None
    steps: dict[str, int] | None = None
    """Number of optimizer steps by their number of samples."""
    recoveries: int | None = None


def facts_of(trial: FrozenTrial) -> TrialFacts:
    """Return the facts of `trial`. Empty if the attribute does not contain facts of batchcal."""
    try:
        return TrialFacts.model_validate(trial.user_attrs.get(ATTRIBUTES, {}))
    except ValidationError:
        return TrialFacts()
