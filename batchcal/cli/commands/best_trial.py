"""`batchcal hpo best --train`: a training with the values of the best trial, outside of any study."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchcal.calibration.store import read_again
from batchcal.cli.commands.checkpoints import choose
from batchcal.cli.commands.training import run_training
from batchcal.cli.output import stdout
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import NothingFits, NotSaved
from batchcal.detect.detect import detect_for
from batchcal.measure.result import CalibrationResult
from batchcal.values.study_events import ShapeStarted

if TYPE_CHECKING:
    from batchcal.cli.commands.studies import OpenStudy
    from batchcal.core.progress import Named
    from batchcal.hpo.study_status import TrialStatus
    from batchcal.train.options import TrainOptions
    from batchcal.workload.task import Task


class _CalibrationMessages:
    """Listener that announces a new calibration, which takes seconds. An existing one is used without a message."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    def event(self, event: Named, /) -> None:
        if isinstance(event, ShapeStarted):
            self._messages.print(f"calibrating {event.shape}, for up to about {event.seconds} s")


def train_winner(study: OpenStudy, best: TrialStatus, *, as_json: bool, messages: Messages) -> None:
    """Train with the parameters of `best`, in this process.

    Raises:
        NothingFits: the trial does not fit here: it ran on a larger machine.
    """
    from batchcal.hpo.shapes import ShapeBook, TooLarge
    from batchcal.hpo.trials.child import with_warmup
    from batchcal.hpo.workers.worker import training_of

    blueprint, values = study.blueprint, best.parameters
    book = ShapeBook(
        blueprint.reference,
        study.options,
        detect_for(study.options.device),
        blueprint.folder / "shapes",
        most_trained=blueprint.most_trained,
        progress=_CalibrationMessages(messages),
    )
    fitting = book.plan_trial(blueprint.space, values, blueprint.effective_batch)
    if isinstance(fitting, TooLarge):
        raise NothingFits(f"trial {best.number} does not fit on this machine: {fitting.why}", try_="a higher memory limit")
    request = training_of(blueprint.reference, blueprint.options, values, fitting, blueprint.settings)
    calibration = read_again(fitting.calibration)

    def options_for(task: Task) -> TrainOptions:
        return with_warmup(request.options, request.warmup_steps, task, fitting.plan.effective_batch)

    checkpoint = choose(study.invocation, resume=False, messages=messages)
    result = run_training(
        replace(study.invocation, reference=request.reference),
        fitting.plan,
        CalibrationResult(calibration=calibration, path=fitting.calibration, fresh=True),
        options_for,
        checkpoint=checkpoint,
        seed=blueprint.settings.seed,
        messages=messages,
        folder=blueprint.folder,
    )
    if as_json:
        stdout.emit(result.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.run.result import show

        stdout.render(show(result, fitting.plan))
    if result.not_saved is not None:
        raise NotSaved(result.not_saved, try_="--set checkpoint=FILE, on a disk with free space")
