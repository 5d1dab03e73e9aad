"""What a training comes to."""

from __future__ import annotations

from typing import Literal

from batchcal.core.values import Record


class EpochResult(Record):
    epoch: int
    """From 0."""
    loss: float
    """Mean over the weight of all samples of the epoch, each as it was when its turn came."""
    evaluation: dict[str, float | None]
    """By name, over the whole evaluation data: the task's metrics, or `loss`. Empty: there are none. None: it is infinite, or no
    number."""
    steps: int
    """Optimizer steps."""
    samples: int
    wall_s: float
    """Of the training part, waiting for data included."""
    samples_per_s: float
    skipped_steps: int = 0
    """Of `steps`: those that changed no parameter, since a float16 gradient overflowed or nothing in them had a gradient."""


class TrainingResult(Record):
    kind: Literal["training"] = "training"
    epochs: tuple[EpochResult, ...]
    """All of them, those before a resume too."""
    samples_per_s: float
    """Over all epochs, evaluation left out."""
    peak_bytes: int
    """Most host memory that this process held at once since the training began: anonymous and shared, file pages left out."""
    accelerator_peak_bytes: int | None
    """Most that the caching allocator reserved. None: trained on the CPU."""
    wall_s: float
    """Of this run, evaluation and checkpoints included."""
    resumed_at_epoch: int | None
    """None: it began anew."""
    stopped_early: bool = False
    """Before all epochs that were asked for."""
    stop_reason: str | None = None
    recoveries: int = 0
    """How often memory ran out in a pass and it was run again."""
    prediction_error: float | None = None
    """Median |predicted / measured - 1| of the peaks of the latest batches. None: no peak was measured."""
    skipped_steps: int = 0
    """Optimizer steps of all epochs that changed no parameter."""
    checkpoint: str | None = None
    """File of the latest checkpoint of this run. None: none was written."""
    not_saved: str | None = None
    """Why the latest checkpoint could not be written. None: it was, or checkpoints are off."""
