"""Definition of a study: all that a worker on any machine needs to run its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field

from batchcal.calibration.schema import Options
from batchcal.core.canonical import JSON, dumps_line
from batchcal.core.errors import UsageError
from batchcal.core.values import Frozen
from batchcal.hpo.config import StudySettings
from batchcal.hpo.search.space import BATCH_SIZE, EPOCHS, Parameter, largest
from batchcal.hpo.storage.backend import default_storage, without_password
from batchcal.train.options import TrainOptions
from batchcal.workload.spec.reference import TaskReference

FOLDER: Final = ".batchcal"
TRAINED_BY: Final = (
    *("seed", "drop_last", "patience", "min_delta", "watch", "watch_mode", "schedule", "warmup", "lr_rule", "lr_reference_batch"),
    *("max_norm", "batching", "balance", "window", "loss_weights"),
)
"""Options that affect the result of a training. The others only affect how it runs."""
_LISTED: Final = 4
"""Most differences in a message."""


class Blueprint(Frozen):
    """A study as requested."""

    settings: StudySettings
    space: dict[str, Parameter]
    reference: TaskReference
    """The task, without sampled values."""
    options: TrainOptions
    """Options as for `train`. Sampled values replace them."""
    effective_batch: int = Field(ge=1)
    """Effective batch if the space has no batch size."""

    @property
    def storage(self) -> str:
        """Path or URL of the storage."""
        return self.settings.storage or str(default_storage(self.folder, self.settings.study))

    @property
    def shown_storage(self) -> str:
        """The storage without its password."""
        return without_password(self.storage)

    @property
    def most_trained(self) -> int:
        """The largest effective batch that a trial may have."""
        return largest(self.space, BATCH_SIZE, default=self.effective_batch)

    @property
    def presences(self) -> Path | None:
        """Folder of the workers' locks, beside a journal. None: the storage is a database, which has heartbeats."""
        return None if "://" in self.storage else Path(f"{self.storage}.workers")

    @property
    def folder(self) -> Path:
        """Folder for the files of this task's studies."""
        return Path(self.reference.directory) / FOLDER

    @property
    def resource(self) -> int:
        """Largest resource that a trial reports: epochs, over all folds."""
        return largest(self.space, EPOCHS, default=self.options.epochs) * max(1, self.settings.folds)

    def identity(self) -> dict[str, JSON]:
        """Settings that make trials comparable, by dotted name. They cannot change once a study has begun; all others can."""
        values: dict[str, JSON] = {
            "task": self.reference.spec,
            "metric": self.settings.metric,
            "direction": self.settings.direction,
            "folds": self.settings.folds,
            "epochs": self.resource,
            "budget": self.settings.budget,
        }
        values |= {f"train.{name}": getattr(self.options, name) for name in TRAINED_BY}
        if BATCH_SIZE not in self.space:
            values["effective_batch"] = self.effective_batch
        values |= {f"task.args.{name}": value for name, value in self.reference.arguments.items()}
        values |= {f"space.{name}": _plain(parameter) for name, parameter in self.space.items()}
        return values


class Assignment(Frozen):
    """Work of one worker."""

    blueprint: Blueprint
    measure: Options
    """Options of the calibration of each shape, with the memory that this worker may use."""
    index: int = Field(default=0, ge=0)
    """Index among the workers that one command started."""
    neighbours: bool = False
    """True if other workers of the same command run beside it."""
    cpus: tuple[int, ...] = ()
    """Cores that the worker uses. Empty: all that the process may use."""


def check_same(study: str, stored: dict[str, JSON], current: dict[str, JSON]) -> None:
    """Raises:
    UsageError: the study was started as `stored`, and `current` differs.
    """
    changes = [
        f"{name} was {_text(stored.get(name))} and is now {_text(current.get(name))}"
        for name in sorted({*stored, *current})
        if stored.get(name) != current.get(name)
    ]
    if changes:
        more = f"; {len(changes) - _LISTED} more settings differ" if len(changes) > _LISTED else ""
        raise UsageError(
            f"study {study!r} exists with other settings",
            known="; ".join(changes[:_LISTED]) + more,
            try_=f'--set study="{study}-2" for a new study, or restore the earlier settings in the config',
        )


def _plain(parameter: Parameter) -> JSON:
    fields: dict[str, JSON] = parameter.model_dump(mode="json", exclude_defaults=False)
    return fields


def _text(value: JSON) -> str:
    return "not set" if value is None else dumps_line(value).decode().strip()
