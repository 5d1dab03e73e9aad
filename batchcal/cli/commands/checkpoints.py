"""Choice of the checkpoint that a training writes and resumes, made before anything is measured."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchcal.calibration.place import place_for
from batchcal.calibration.store import find_project, make_folder
from batchcal.core.errors import UsageError
from batchcal.core.readers import OFF
from batchcal.train.checkpoints.files import (
    is_checkpoint,
    new_checkpoint,
    newest_checkpoint,
    partial_path,
    remove_older,
    task_name,
)
from batchcal.train.checkpoints.lock import refuse_in_use
from batchcal.values.settings import TrainSettings
from batchcal.values.training_events import CheckpointSaved

if TYPE_CHECKING:
    from batchcal.cli.invocation import Invocation
    from batchcal.cli.output.messages import Messages
    from batchcal.core.progress import Progress
    from batchcal.values.training_events import TrainingEvent


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one training."""

    path: Path | None
    """Absolute. None: checkpoints are off."""
    resume: bool = False
    task: str | None = None
    """Name of the task, if the path is the default of this run. Checkpoints of earlier runs of the task are then removed."""
    try_instead: str = "--checkpoint FILE, on a disk with free space"
    """Proposal for the user if the file cannot be written."""

    def with_cleanup(self, view: Progress[TrainingEvent]) -> Progress[TrainingEvent]:
        """Return `view`. With a default path, it also removes the checkpoints of older runs after the first save."""
        return view if self.path is None or self.task is None else _Removing(self.path, self.task, view)


class _Removing:
    """View that removes the checkpoints of older runs once this run has one."""

    def __init__(self, path: Path, task: str, view: Progress[TrainingEvent]) -> None:
        self._path, self._task, self._view = path, task, view
        self._done = False

    def event(self, event: TrainingEvent, /) -> None:
        if isinstance(event, CheckpointSaved) and not self._done:
            self._done = True
            remove_older(self._path.parent, self._task, self._path)
        self._view.event(event)


def choose(invocation: Invocation, *, resume: bool, messages: Messages) -> Checkpoint:
    """Choose the checkpoint of a training that begins now.

    Raises:
        UsageError: checkpoints are off but `resume` is set, batchcal did not write the file, another run writes it, or its
            folder cannot be written.
    """
    setting = invocation.settings.of(TrainSettings.checkpoint)
    if setting.value == OFF:
        if resume:
            raise UsageError(
                "--resume needs checkpoints",
                known=f"checkpoints are turned off by {setting.origin}",
                try_="--checkpoint FILE --resume",
            )
        return Checkpoint(None)
    if setting.value is not None:
        path = invocation.directory / setting.value
        _check_path(path, setting.value, resume=resume)
        return Checkpoint(path, resume)
    return _default(invocation, resume=resume, messages=messages)


def _default(invocation: Invocation, *, resume: bool, messages: Messages) -> Checkpoint:
    reference = invocation.task()
    directory = Path(reference.directory)
    try:
        folder = place_for(reference, {}).path.parent
    except UsageError as error:
        raise UsageError(
            "no folder for checkpoints can be written",
            known=error.known,
            try_="--checkpoint FILE in a folder that can be written, or --no-checkpoint",
        ) from error
    if folder.parent != find_project(directory):
        messages.print(f" note: {find_project(directory)} cannot be written; checkpoints are saved in {folder}")
    task = task_name(reference.spec, directory)
    newest = newest_checkpoint(folder, task) if resume else None
    if newest is not None:
        refuse_in_use(newest, partial_path(newest))
    if resume:
        messages.print(
            f" note: {folder} has no checkpoint of {reference.spec} yet; the training starts from the beginning"
            if newest is None
            else f"resuming from {newest}"
        )
    path = newest or new_checkpoint(folder, task)
    with contextlib.suppress(OSError):  # a disk that fails here fails the saves too, which are reported
        make_folder(path)
    return Checkpoint(path, resume, task)


def _check_path(path: Path, text: str, *, resume: bool) -> None:
    if path.exists() and not is_checkpoint(path):
        raise UsageError(
            f"--checkpoint {text} is an existing file that is not a checkpoint",
            known="it can be neither resumed nor replaced" if resume else "batchcal replaces only files that it wrote itself",
            try_="--resume alone, to continue from the newest checkpoint of the task; or another --checkpoint"
            if resume
            else f"--checkpoint other.pt, or move {path.name} away first",
        )
    partial = partial_path(path)
    refuse_in_use(path, partial)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        if not partial.stat().st_size:
            partial.unlink()
    except OSError as error:
        raise UsageError(
            f"the checkpoint cannot be written to {text}",
            known=error.strerror or str(error),
            try_="--checkpoint FILE in a folder that can be written, or --no-checkpoint",
        ) from error
