"""Arguments, answer and function of the child of a trial. Torch is imported only when a function is called."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from batchcal.core.values import Frozen
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.plan.plan import Plan
from batchcal.train.options import TrainOptions
from batchcal.workload.reference import TaskReference


class TrialRequest(Frozen):
    """One trial: what is trained, how, and what is looked at."""

    reference: TaskReference
    """With the sampled values among its arguments."""
    plan: Plan
    options: TrainOptions
    calibration: str | None = None
    """Path of the calibration that the plan is from: its memory model predicts each batch."""
    metric: str = "loss"
    maximize: bool = False
    folds: int = Field(default=0, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps of warm-up, in place of the share in `options`."""
    memory_limit_bytes: int | None = Field(default=None, ge=1)
    """What it may hold of the host's memory, the margin included. None: no matter, it trains on an accelerator."""
    stall_limit_s: float = Field(default=300.0, gt=0)
    """Seconds without an optimizer step after which the trial is taken to hang."""


class Reached(Frozen):
    """An epoch has ended."""

    resource: int
    """Epochs trained so far; with folds those of all folds together, a fold that ended early counting whole. The same number
    means the same work in every trial, whatever its batch size."""
    value: float
    """The best so far; with folds the mean over those that are done, and the one that is going on."""
    peak_bytes: int = 0
    """The most that was measured so far; 0: nothing was."""


class TrialAnswer(Frozen):
    """What a trial came to."""

    value: float
    """The best epoch's; with folds the mean over all folds."""
    fold_values: tuple[float, ...]
    epochs: int
    """Trained, over all folds."""
    stop_reason: str | None
    """Why it ended before its last epoch."""
    peak_bytes: int
    samples_per_s: float
    steps: dict[str, int]
    """Optimizer steps by the number of samples in them: `{"64": 312, "32": 3}`; the second are the ends of epochs."""
    recoveries: int


TrialState = Literal["complete", "pruned", "infeasible", "failed", "stopped"]


def run_trial(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """One trial of a study."""
    from batchcal.hpo.inside import run_trial

    return run_trial(TrialRequest.model_validate(arguments), context)
