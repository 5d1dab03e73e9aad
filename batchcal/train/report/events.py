"""What a training says of itself: the names of its events and of their fields, which the log keeps as they are."""

from __future__ import annotations

from typing import Final

# Format history
# 1 - (0.2) first version
FORMAT: Final = 1
KIND: Final = "run"
FILE_NAME: Final = "run.jsonl"
"""How a run is called in a folder of its own."""

STARTED: Final = "training_started"
STEP: Final = "step"
RECOVERED: Final = "recovered"
RESIZED: Final = "resized"
EPOCH_ENDED: Final = "epoch_ended"
CHECKPOINT_SAVED: Final = "checkpoint_saved"
NOTICE: Final = "notice"
ENDED: Final = "training_ended"
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
