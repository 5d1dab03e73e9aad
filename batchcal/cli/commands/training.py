"""A training with its output for the user: from settings and a plan to the result."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from batchcal.calibration.schema import OFF
from batchcal.cli.output.progress import listening_to_training
from batchcal.cli.output.stop_key import stopping_at_q
from batchcal.cli.output.user_output import loading_output, only_result_on_stdout
from batchcal.core.errors import BatchcalError, UsageError
from batchcal.core.progress import Notice
from batchcal.core.version import __version__
from batchcal.plan.formats import as_lines
from batchcal.train.ending.stop_request import StopRequest
from batchcal.train.options import TrainOptions
from batchcal.train.report.monitor import TrainingMonitor
from batchcal.train.report.tensorboard import TensorBoard
from batchcal.train.sizes.controller import ControlSettings
from batchcal.values.settings import TrainSettings
from batchcal.workload.spec.user_traceback import blame, in_user_code

if TYPE_CHECKING:
    from batchcal.cli.commands.checkpoints import Checkpoint
    from batchcal.cli.invocation import Invocation
    from batchcal.cli.output.messages import Messages
    from batchcal.core.progress import Progress
    from batchcal.measure.result import CalibrationResult
    from batchcal.plan.plan import Plan
    from batchcal.train.result import TrainingResult
    from batchcal.values.settings import Settings
    from batchcal.values.training_events import TrainingEvent
    from batchcal.workload.task import Task

LOG_NAME: Final = "run.jsonl"


def options_of(settings: Settings, *, margin: float, memory_limit_bytes: int | None = None) -> TrainOptions:
    """Return the options of a training that leaves `margin` of the memory limit free.

    Args:
        memory_limit_bytes: the limit if no flag, variable or file sets one: that of the calibration of the plan.

    Raises:
        UsageError: a value is out of its range, or two values contradict each other.
    """
    train = settings.train
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    values = {option.field: settings.value(option) for option in TrainSettings.options() if option.field in names}
    if train.max_steps is not None and not settings.is_set(TrainSettings.epochs):
        values["epochs"] = train.max_steps  # an epoch has at least one step
    control = ControlSettings(
        grow_below=train.grow_below,
        grow_after=train.grow_after,
        shrink_above=1 - margin if train.shrink_above is None else train.shrink_above,
        shrink_after=train.shrink_after,
    )
    memory_limit_bytes = settings.calibrate.memory_limit or memory_limit_bytes
    values |= {"seed": settings.calibrate.seed, "control": control, "memory_limit_bytes": memory_limit_bytes}
    return TypeAdapter(TrainOptions).validate_python(values)


@contextlib.contextmanager
def training_monitor(invocation: Invocation, folder: Path | None, *, view: Progress[TrainingEvent]) -> Iterator[TrainingMonitor]:
    """Yield the receiver of the training's events: the requested log, by default in `folder`; TensorBoard; the screen.

    Raises:
        UsageError: a requested log cannot be written, or TensorBoard is not installed.
    """
    requested, board = invocation.place(invocation.settings.train.log), invocation.place(invocation.settings.train.tensorboard)
    about = {"spec": invocation.task().spec, "batchcal": __version__}
    with contextlib.ExitStack() as stack:
        sinks = [] if board is None else [stack.enter_context(TensorBoard(board))]
        try:
            log = requested if requested is not None else None if folder is None else folder / LOG_NAME
            monitor = TrainingMonitor(log, sinks=sinks, view=view, about=about)
        except UsageError as error:
            if requested is not None:
                raise
            # This log was not requested: a training is worth more than its log.
            monitor = TrainingMonitor(None, sinks=sinks, view=view, about=about)
            monitor.event(Notice(f"no log is written: {error.what}"))
        yield stack.enter_context(monitor)


def run_training(
    invocation: Invocation,
    plan: Plan,
    calibration_result: CalibrationResult,
    options_for: Callable[[Task], TrainOptions],
    *,
    checkpoint: Checkpoint,
    seed: int | None = None,
    messages: Messages,
    folder: Path | None = None,
) -> TrainingResult:
    """Apply the plan (which may restart this process), load the task and train it.

    Args:
        options_for: returns the options of the training, once its data is loaded.
        seed: default: the seed of the settings.
        folder: folder of the log if no log is requested. Default: that of the calibration.

    Raises:
        UserCodeError: the task's own code failed.
    """
    from batchcal.runtime.apply import AllocatorNotInForce, apply, reexec_for

    messages.release()
    reexec_for(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AllocatorNotInForce)
        applied = apply(plan)
    for notice in (*plan.notices, *applied.notices):
        messages.print(f" note: {notice}")
    for line in as_lines(plan):
        messages.print(line)
    with only_result_on_stdout():
        return _train_with_plan(
            invocation, plan, calibration_result, options_for, checkpoint=checkpoint, seed=seed, messages=messages, folder=folder
        )


def _running_threads() -> list[str]:
    """Names of threads that keep the process from ending."""
    return [thread.name for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]


def _train_with_plan(
    invocation: Invocation,
    plan: Plan,
    calibration_result: CalibrationResult,
    options_for: Callable[[Task], TrainOptions],
    *,
    checkpoint: Checkpoint,
    seed: int | None,
    messages: Messages,
    folder: Path | None,
) -> TrainingResult:
    """Run `run_training` with the plan in force. Output of the user's code to stdout goes to stderr."""
    from batchcal.guard.cleanup.private_folder import keep_shared_names
    from batchcal.train.loop import train as run
    from batchcal.train.memory.predictor import predictor_of
    from batchcal.train.seed import seed_everything
    from batchcal.workload.model.activation_checkpointing import GradientCheckpointManager
    from batchcal.workload.spec.load import load_task

    keep_shared_names()
    seed_everything(invocation.settings.calibrate.seed if seed is None else seed)
    reference = invocation.task()
    notes: list[str] = []
    with loading_output(messages):
        task = load_task(reference, device=plan.device, note=notes.append)
    for text in notes:
        messages.print(f" note: {text}")
    if calibration_result.calibration.options.activation_checkpointing != OFF:
        GradientCheckpointManager(task.model, calibration_result.calibration.options.activation_checkpointing).enable()
    folder = folder or (None if calibration_result.path is None else calibration_result.path.parent)
    try:
        stop_request = StopRequest()
        with (
            listening_to_training(messages) as view,
            training_monitor(invocation, folder, view=checkpoint.with_cleanup(view)) as progress,
            stopping_at_q(lambda: stop_request.request("q was pressed")) as listens,
        ):
            if listens:
                progress.event(Notice("press q to stop after the current step"))
            result = run(
                task,
                plan,
                options_for(task),
                checkpoint=checkpoint.path,
                resume=checkpoint.resume,
                predictor=predictor_of(calibration_result.calibration, plan),
                wish=stop_request,
                progress=progress,
            )
        for name in _running_threads():
            messages.print(
                f" note: thread {name} of the task still runs, and this process waits for it; "
                "with daemon=True the process would not wait"
            )
        return result
    except BatchcalError:
        raise
    except Exception as error:
        if in_user_code(error.__traceback__):
            raise blame(
                error,
                f"training {reference.spec}",
                try_="-v shows all lines of the traceback"
                + ("; --workers 0 shows where a worker failed" if plan.num_workers else ""),
            ) from error
        raise
