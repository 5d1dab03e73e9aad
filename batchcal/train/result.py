"""Results of a training."""

from __future__ import annotations

from typing import Literal

from batchcal.core.values import Record


class EpochResult(Record):
    epoch: int
    """Number of the epoch, from 0."""
    loss: float
    """Mean over the weight of all samples of the epoch. The loss of each sample is the one at its own step."""
    evaluation: dict[str, float | None]
    """Values by name, over all evaluation data: the task's metrics, or `loss`. Empty: there are none. None: NaN or infinite."""
    steps: int
    """Optimizer steps."""
    samples: int
    wall_s: float
    """Seconds of the training part, including the wait for data."""
    samples_per_s: float
    skipped_steps: int = 0
    """Number of `steps` that changed no parameter, because a float16 gradient overflowed or no loss in them had a gradient."""


class TrainingResult(Record):
    kind: Literal["training"] = "training"
    epochs: tuple[EpochResult, ...]
    """All epochs, including those before a resume."""
    samples_per_s: float
    """Rate over all epochs, without evaluation."""
    peak_bytes: int
    """Peak of this process's host memory since the training began: anonymous and shared, without file pages."""
    accelerator_peak_bytes: int | None
    """Peak of the memory that the caching allocator reserved. None: trained on the CPU."""
    wall_s: float
    """Seconds of this run, including evaluation and checkpoints."""
    resumed_at_epoch: int | None
    """None: the run did not resume."""
    stopped_early: bool = False
    """True if the training ended before all requested epochs."""
    stop_reason: str | None = None
    recoveries: int = 0
    """Number of passes that ran out of memory and were run again."""
    prediction_error: float | None = None
    """Median |predicted / measured - 1| of the peaks of the latest batches. None: no peak was measured."""
    skipped_steps: int = 0
    """Optimizer steps of all epochs that changed no parameter."""
    checkpoint: str | None = None
    """File of the latest checkpoint of this run. None: none was written."""
    not_saved: str | None = None
    """Reason why the latest checkpoint could not be written. None: it was written, or checkpoints are off."""
