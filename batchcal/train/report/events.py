"""Names of the events of a training and of their fields, which the log keeps unchanged."""

from __future__ import annotations

from typing import Final

from batchcal.core.progress import Notice
from batchcal.values.training_events import (
    CheckpointSaved,
    EpochEnded,
    Recovered,
    Resized,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
)

FILE_NAME: Final = "run.jsonl"
"""File name of the log of a run in a folder of its own."""

STARTED: Final = TrainingStarted.event_name
STEP: Final = StepEnded.event_name
RECOVERED: Final = Recovered.event_name
RESIZED: Final = Resized.event_name
EPOCH_ENDED: Final = EpochEnded.event_name
CHECKPOINT_SAVED: Final = CheckpointSaved.event_name
NOTICE: Final = Notice.event_name
ENDED: Final = TrainingEnded.event_name
STOPPED: Final = "training_stopped"
"""The training was stopped by an error or a signal. Written by the monitor itself, when the exception passes it."""

LOSS: Final = "loss_"
"""Prefix of the name of a task, if there are several losses."""
WEIGHT: Final = "weight_"
GRAD_NORM: Final = "grad_norm_"
EVAL: Final = "eval_"
"""Prefix of the name of a metric."""

NOT_FINITE: Final = "not_finite"
"""JSON has no NaN: such a field is null, and this field contains `loss=nan grad_norm=inf`."""
