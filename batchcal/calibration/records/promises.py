"""Checks of the promises of a task. Each check runs once per calibration, in the examination.

This module contains only the schema. A violated promise limits the plans. A promise that could not be checked limits nothing and
is reported with its reason.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.core.values import Record

PromiseName = Literal["mean-over-weight", "batch-statistics", "same-samples-in-workers", "step-without-loss"]
"""`mean-over-weight`: the loss of a batch is the mean over its weight, so that a batch may be divided into micro-batches.
`batch-statistics`: no layer depends on the other samples of the batch (BatchNorm does).
`same-samples-in-workers`: DataLoader workers return the samples that the training process itself reads.
`step-without-loss`: the optimizer's step does not compute the loss again, so that a batch may be divided. Reported if it is
violated (LBFGS)."""


class PromiseCheck(Record):
    """The result of one check."""

    promise: PromiseName
    result: Literal["ok", "violated", "not-checked"]
    mismatch: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Relative size of the violation: 0.76 for a gradient that is 76 % off. None: not applicable."""
    cause: str = ""
    """Likely cause of a violation, or reason why the promise was not checked."""
    fix: str = ""
    """Change that the user can make."""
    single_sample_error: str = ""
    """Error of training with a batch of one sample, which BatchNorm refuses. Empty: it runs, or was not tried."""
    wall_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Duration of the check, without the loading of the task."""
