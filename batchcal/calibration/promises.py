"""Checks of the promises that a task makes: each is made once per calibration, in the examination.

The schema only. A promise that is violated limits what a plan may do; a promise that could not be checked limits nothing and is
reported with its reason.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.core.values import Record

PromiseName = Literal["mean-over-weight", "batch-statistics", "same-samples-in-workers", "step-without-loss"]
"""`mean-over-weight`: the loss of a batch is the mean over its weight, so that a batch may be divided into micro-batches.
`batch-statistics`: no layer depends on the other samples of the batch (BatchNorm does).
`same-samples-in-workers`: DataLoader workers return the samples that the training process itself reads.
`step-without-loss`: the optimizer's step does not compute the loss again, so that a batch may be divided. Reported where it is
violated (LBFGS)."""


class PromiseCheck(Record):
    """The result of one check."""

    promise: PromiseName
    result: Literal["ok", "violated", "not-checked"]
    mismatch: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Relative size of the violation: 0.76 for a gradient that is 76 % off. None: there is no such number."""
    cause: str = ""
    """The likely cause of a violation, or why the promise was not checked."""
    fix: str = ""
    """What the user can change."""
    single_sample_error: str = ""
    """How training with a batch of one sample fails, which BatchNorm refuses. Empty: it runs, or was not tried."""
    wall_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Time that the check took, the loading of the task left out."""
