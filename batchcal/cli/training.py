"""A training under the eyes of the user: from settings and a plan to its result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchcal.core import settings as knobs

if TYPE_CHECKING:
    from batchcal.cli.calibrating import Found
    from batchcal.cli.desk import Desk
    from batchcal.cli.voice import Voice
    from batchcal.core.progress import Progress
    from batchcal.core.settings import Settings
    from batchcal.plan.plan import Plan
    from batchcal.train.options import TrainOptions
    from batchcal.train.report.monitor import TrainingMonitor
    from batchcal.train.result import TrainingResult
    from batchcal.workload.task import Task

LOG_NAME: Final = "run.jsonl"


def options_of(settings: Settings, *, margin: float) -> TrainOptions:
    """What a training is asked to do, where `margin` of the memory limit is left alone.

    Raises:
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
            shrink_above=1 - margin if shrink_above is None else shrink_above,
            shrink_after=settings.value(knobs.SHRINK_AFTER),
        ),
        on_oom=settings.value(knobs.ON_OOM),
        fence=settings.value(knobs.FENCE),
    )


@contextlib.contextmanager
def monitored(desk: Desk, folder: Path | None, *, view: Progress) -> Iterator[TrainingMonitor]:
    """What hears the training: the log that was asked for, by default in `folder`; TensorBoard; the screen.

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
            log = Path(asked) if asked is not None else None if folder is None else folder / LOG_NAME
            monitor = TrainingMonitor(log, sinks=sinks, view=view, about=about)
        except UsageError as error:
            if asked is not None:
                raise
            # Nobody asked for it: a training is worth more than its log.
            monitor = TrainingMonitor(None, sinks=sinks, view=view, about=about)
            monitor.event("notice", {"text": f"no log is kept: {error.what}"})
        yield stack.enter_context(monitor)


def trained(
    desk: Desk,
    plan: Plan,
    found: Found,
    options_for: Callable[[Task], TrainOptions],
    *,
    seed: int | None = None,
    resume: bool = False,
    voice: Voice,
    folder: Path | None = None,
) -> TrainingResult:
    """Puts the plan into force (which may start this process anew), loads the task and trains it.

    Args:
        options_for: what the training is asked to do, once its data is there.
        seed: default: as it is set.
        folder: of the log, where nobody says which. Default: that of the calibration.

    Raises:
        UserCodeError: the task's own code failed.
    """
    import warnings

    from batchcal.cli.progress import listening
    from batchcal.plan.formats import as_lines
    from batchcal.runtime.apply import AllocatorNotInForce, apply, reexec_for

    reexec_for(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AllocatorNotInForce)
        applied = apply(plan)
    for notice in (*plan.notices, *applied.notices):
        voice.say(f" note: {notice}")
    for line in as_lines(plan):
        voice.say(line)
    from batchcal.calibration.schema import OFF
    from batchcal.cli.keys import stopping_at_q
    from batchcal.core.errors import BatchcalError
    from batchcal.train.loop import train as run
    from batchcal.train.memory.predictor import predictor_of
    from batchcal.train.seed import seed_everything
    from batchcal.train.stop import StopWish
    from batchcal.workload.activation_checkpointing import GradientCheckpointManager
    from batchcal.workload.blame import blame, in_user_code
    from batchcal.workload.load import load_task

    checkpoint = desk.settings.value(knobs.CHECKPOINT)
    seed_everything(desk.settings.value(knobs.SEED) if seed is None else seed)
    reference = desk.task()
    task = load_task(reference, device=plan.device)
    if found.calibration.options.activation_checkpointing != OFF:
        GradientCheckpointManager(task.model, found.calibration.options.activation_checkpointing).enable()
    folder = folder or (None if found.path is None else found.path.parent)
    try:
        wish = StopWish()
        with (
            listening(voice, "training") as view,
            monitored(desk, folder, view=view) as progress,
            stopping_at_q(lambda: wish.ask("q was pressed")) as listens,
        ):
            if listens:
                progress.event("notice", {"text": "q stops after the step that is going on"})
            return run(
                task,
                plan,
                options_for(task),
                checkpoint=None if checkpoint is None else Path(checkpoint),
                resume=resume,
                predictor=predictor_of(found.calibration, plan),
                wish=wish,
                progress=progress,
            )
    except BatchcalError:
        raise
    except Exception as error:
        if in_user_code(error.__traceback__):
            raise blame(error, f"training {reference.spec}", try_="-v, or --workers 0 where a worker failed") from error
        raise
