"""Arguments, answer and function of the child process of a trial. Torch is imported only when the function is called."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.plan.plan import Plan
from batchcal.train.options import TrainOptions
from batchcal.workload.spec.reference import TaskReference


class TrialRequest(Frozen):
    """One trial: its task, its options and the metric."""

    reference: TaskReference
    """The task, with the sampled values among its arguments."""
    plan: Plan
    options: TrainOptions
    calibration: str | None = None
    """Path of the calibration of the plan. Its memory model predicts each batch."""
    metric: str = "loss"
    maximize: bool = False
    folds: int = Field(default=0, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps of warm-up, in place of the share in `options`."""
    memory_limit_bytes: int | None = Field(default=None, ge=1)
    """Largest host memory of the trial, bytes, including the margin. None: not relevant, it trains on an accelerator."""
    stall_limit_s: float = Field(default=300.0, gt=0)
    """Seconds without an optimizer step after which the trial counts as hanging."""


class Reached(Frozen):
    """Report at the end of an epoch."""

    resource: int
    """Epochs trained so far. With folds: epochs of all folds together, and a fold that ended early counts in full. The same
    number means the same work in every trial, whatever its batch size."""
    value: float
    """Best value so far. With folds: mean over the finished folds and the current one."""
    peak_bytes: int = 0
    """Highest memory peak measured so far. 0: none was measured."""


class TrialAnswer(Frozen):
    """Result of a trial."""

    value: float
    """Value of the best epoch. With folds: mean over all folds."""
    fold_values: tuple[float, ...]
    epochs: int
    """Epochs trained, over all folds."""
    stop_reason: str | None
    """Reason if it ended before its last epoch."""
    peak_bytes: int
    samples_per_s: float
    steps: dict[str, int]
    """Number of optimizer steps by their number of samples: `{"64": 312, "32": 3}`. Here the second are the ends of epochs."""
    recoveries: int


TrialState = Literal["complete", "pruned", "infeasible", "failed", "stopped"]


def run_trial(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Run one trial of a study."""
    from batchcal.hpo.trials.child import run_trial

    return run_trial(TrialRequest.model_validate(arguments), context)
