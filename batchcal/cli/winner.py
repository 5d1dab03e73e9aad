"""batchcal hpo best --train: the values of the best trial, trained with outside of any study."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchcal.cli.voice import Voice
from batchcal.core import settings as knobs

if TYPE_CHECKING:
    from batchcal.cli.studying import Opened
    from batchcal.core.progress import Fields
    from batchcal.hpo.seen import TrialSeen
    from batchcal.train.options import TrainOptions
    from batchcal.workload.task import Task


class _Telling:
    """A calibration that is there is used without a word; one that is made takes seconds."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice

    def event(self, name: str, fields: Fields) -> None:
        if name == "shape_started":
            self._voice.say(f"calibrating {fields.get('shape')}: at most about {fields.get('seconds')} s")


def train_winner(opened: Opened, best: TrialSeen, *, as_json: bool, voice: Voice) -> None:
    """Trains with the parameters of `best`, in this process.

    Raises:
        NothingFits: it does not fit here: it ran on a larger machine.
    """
    import json

    from batchcal.calibration.schema import Calibration
    from batchcal.cli import screen
    from batchcal.cli.calibrating import Found
    from batchcal.cli.training import trained
    from batchcal.core.errors import NothingFits, NotSaved
    from batchcal.detect.detect import detect_for
    from batchcal.hpo.inside import with_warmup
    from batchcal.hpo.shapes import ShapeBook, TooLarge
    from batchcal.hpo.space import BATCH_SIZE, shape_of
    from batchcal.hpo.worker import training_of

    blueprint, values = opened.blueprint, best.parameters
    batch = values.get(BATCH_SIZE)
    book = ShapeBook(
        blueprint.reference,
        opened.options,
        detect_for(opened.options.device),
        blueprint.folder / "shapes",
        most_trained=blueprint.most_trained,
        progress=_Telling(voice),
    )
    fitting = book.plan(shape_of(blueprint.space, values), batch if isinstance(batch, int) else blueprint.effective_batch)
    if isinstance(fitting, TooLarge):
        raise NothingFits(f"trial {best.number} does not fit here: {fitting.why}", try_="a higher memory limit")
    wanted = training_of(blueprint.reference, blueprint.options, values, fitting, blueprint.settings)
    calibration = Calibration.model_validate(json.loads(fitting.calibration.read_bytes()))

    def options_for(task: Task) -> TrainOptions:
        return with_warmup(wanted.options, wanted.warmup_steps, task, fitting.plan.effective_batch)

    result = trained(
        replace(opened.desk, reference=wanted.reference),
        fitting.plan,
        Found(calibration=calibration, path=fitting.calibration),
        options_for,
        seed=blueprint.settings.seed,
        voice=voice,
        folder=blueprint.folder,
    )
    if as_json:
        screen.emit(result.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.training import show

        screen.render(show(result, fitting.plan))
    if opened.desk.settings.value(knobs.CHECKPOINT) is None:
        voice.say("the model was not kept: --set checkpoint=best.pt writes it to a file")
    if result.not_saved is not None:
        raise NotSaved(result.not_saved, try_="[train] checkpoint = FILE, on a disk with room")
