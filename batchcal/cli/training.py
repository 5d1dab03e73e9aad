"""From settings and a calibration to what a training is asked to do and knows beforehand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchcal.core import settings as knobs

if TYPE_CHECKING:
    from batchcal.calibration.schema import Calibration
    from batchcal.cli.desk import Desk
    from batchcal.core.progress import Progress
    from batchcal.core.settings import Settings
    from batchcal.train.options import TrainOptions
    from batchcal.train.report.monitor import TrainingMonitor

LOG_NAME: Final = "run.jsonl"


def options_of(settings: Settings, calibration: Calibration) -> TrainOptions:
    """Raises:
    UsageError: a value that cannot be, or two that contradict each other.
    """
    from batchcal.train.options import TrainOptions
    from batchcal.train.sizes.controller import ControlSettings

    shrink_above = settings.value(knobs.SHRINK_ABOVE)
    return TrainOptions(
        epochs=settings.value(knobs.EPOCHS),
        seed=settings.value(knobs.SEED),
        drop_last=settings.value(knobs.DROP_LAST),
        checkpoint_every_s=settings.value(knobs.CHECKPOINT_EVERY),
        patience=settings.value(knobs.PATIENCE),
        min_delta=settings.value(knobs.MIN_DELTA),
        watch=settings.value(knobs.WATCH),
        watch_mode=settings.value(knobs.WATCH_MODE),
        schedule=settings.value(knobs.SCHEDULE),
        warmup=settings.value(knobs.WARMUP),
        lr_rule=settings.value(knobs.LR_RULE),
        lr_reference_batch=settings.value(knobs.LR_REFERENCE_BATCH),
        max_norm=settings.value(knobs.MAX_NORM),
        batching=settings.value(knobs.BATCHING),
        balance=settings.value(knobs.BALANCE),
        window=settings.value(knobs.WINDOW),
        loss_weights=settings.value(knobs.LOSS_WEIGHTS),
        start_micro_batch=settings.value(knobs.START_MICRO_BATCH),
        control=ControlSettings(
            grow_below=settings.value(knobs.GROW_BELOW),
            grow_after=settings.value(knobs.GROW_AFTER),
            shrink_above=1 - calibration.options.margin if shrink_above is None else shrink_above,
            shrink_after=settings.value(knobs.SHRINK_AFTER),
        ),
        on_oom=settings.value(knobs.ON_OOM),
        fence=settings.value(knobs.FENCE),
    )


@contextlib.contextmanager
def monitored(desk: Desk, calibration: Path | None, *, view: Progress) -> Iterator[TrainingMonitor]:
    """What hears the training: the log that was asked for, by default beside the calibration; TensorBoard; the screen.

    Raises:
        UsageError: a log that was asked for cannot be written, or TensorBoard is not installed.
    """
    from batchcal.core.errors import UsageError
    from batchcal.core.version import __version__
    from batchcal.train.report.monitor import TrainingMonitor
    from batchcal.train.report.tensorboard import TensorBoard

    asked, board = desk.settings.value(knobs.LOG), desk.settings.value(knobs.TENSORBOARD)
    about = {"spec": desk.task().spec, "batchcal": __version__}
    with contextlib.ExitStack() as stack:
        sinks = [] if board is None else [stack.enter_context(TensorBoard(Path(board)))]
        try:
            log = Path(asked) if asked is not None else None if calibration is None else calibration.parent / LOG_NAME
            monitor = TrainingMonitor(log, sinks=sinks, view=view, about=about)
        except UsageError as error:
            if asked is not None:
                raise
            # Nobody asked for it: a training is worth more than its log.
            monitor = TrainingMonitor(None, sinks=sinks, view=view, about=about)
            monitor.event("notice", {"text": f"no log is kept: {error.what}"})
        yield stack.enter_context(monitor)
