"""What a training says of itself: the names of its events and of their fields, which the log keeps as they are."""

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
"""How a run is called in a folder of its own."""

STARTED: Final = TrainingStarted.event_name
STEP: Final = StepEnded.event_name
RECOVERED: Final = Recovered.event_name
RESIZED: Final = Resized.event_name
EPOCH_ENDED: Final = EpochEnded.event_name
CHECKPOINT_SAVED: Final = CheckpointSaved.event_name
NOTICE: Final = Notice.event_name
ENDED: Final = TrainingEnded.event_name
STOPPED: Final = "training_stopped"
"""By an error or a signal; the monitor's own, which sees it pass."""

LOSS: Final = "loss_"
"""Before the name of a task, where a task has several losses."""
WEIGHT: Final = "weight_"
GRAD_NORM: Final = "grad_norm_"
EVAL: Final = "eval_"
"""Before the name of a metric."""

NOT_FINITE: Final = "not_finite"
"""JSON has no NaN: such a field is null, and this one says `loss=nan grad_norm=inf`."""
