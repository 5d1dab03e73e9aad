"""Input of a command: the named task, the settings in force, the calibration and its freshness."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchcal.cli.output.messages import Messages
from batchcal.core.errors import UsageError
from batchcal.core.settings import SettingSource, unknown_variables
from batchcal.values.settings import CalibrateSettings, PlanSettings, Settings

if TYPE_CHECKING:
    from batchcal.calibration.locate import Located
    from batchcal.calibration.schema import Options
    from batchcal.workload.spec.config import Config
    from batchcal.workload.spec.reference import TaskReference


OF_THIS_COMMAND: Final = (
    CalibrateSettings.time_limit,
    CalibrateSettings.max_probes,
    CalibrateSettings.seed,
    PlanSettings.effective_batch,
    PlanSettings.objective,
)
"""Options that a later command does not take from an earlier calibration."""


@dataclass(frozen=True)
class Invocation:
    """The working directory of a command, with its settings and its task."""

    settings: Settings
    reference: TaskReference | None
    """None: neither the command nor the project names a task."""
    directory: Path

    def place(self, path: str | None) -> Path | None:
        """Return the path of a setting. Relative paths start in the folder where the command was started, because the user's
        code may change the working directory."""
        return None if path is None else self.directory / path

    def locate(self, calibration: str | None) -> Located:
        """Return the calibration that the option or argument `calibration` names, else that of the task or of the project.

        Raises:
            UsageError: see `find_calibration` and `named_by`.
        """
        from batchcal.calibration.locate import find_calibration, named_by

        if calibration is not None:
            return named_by(calibration, self.directory, os.environ)
        return find_calibration(self.directory, os.environ, self.reference)

    def task(self) -> TaskReference:
        """Return the task.

        Raises:
            UsageError: there is no task. The message shows in five lines how to name one.
        """
        if self.reference is not None:
            return self.reference
        raise UsageError(
            f"which task? None is given, and no batchcal.toml or [tool.batchcal] from {self.directory} upwards has one",
            known="a task is a function: def task(): return batchcal.Task(model=..., optimizer=..., train_data=..., loss=...)",
            try_="batchcal calibrate train.py:task          where it is in train.py\n"
            "batchcal calibrate package.module:task    where it can be imported\n"
            'batchcal calibrate                        with spec = "train.py:task" below [task] in batchcal.toml',
        )


def open_invocation(
    target: str | None,
    *,
    flags: Mapping[str, str | None],
    spelled: Mapping[str, str] | None = None,
    config: str | None = None,
    revise: Callable[[Config], Config] = lambda config: config,
    voice: Messages,
) -> Invocation:
    """Read the existing configuration files.

    Args:
        target: a SPEC or a config, as typed.
        flags, spelled: see `Settings`.
        config: a config with settings. It overrides a target that is also a config.
        revise: changes the config if the target is one.

    Raises:
        UsageError: a file does not exist, a key is unknown, or the target has no known form.
    """
    from batchcal.workload.spec.config import project_source, read_config
    from batchcal.workload.spec.target import reference_of

    directory = Path.cwd()
    files: list[SettingSource] = []
    reference: TaskReference | None = None
    if config is not None:
        read = read_config(directory / config, directory=directory)
        files.append(SettingSource(config, read.tables))
        reference = read.reference
    if target is not None and target.endswith(".toml"):
        revised = revise(read_config(directory / target, directory=directory))
        reference = reference_of(target, directory=directory) if revised.reference is None else revised.reference
        files.append(SettingSource(target, revised.tables))
    elif target is not None:
        reference = reference_of(target, directory=directory)
    found = project_source(directory)
    if found is not None:
        source, of_project = found
        files.append(source)
        reference = reference or of_project.reference
    settings = Settings(flags=flags, spelled=spelled, environ=os.environ, files=files)
    voice.settings = settings
    for text in unknown_variables(os.environ, Settings.options()):
        voice.say(f" note: {text}")
    if voice.verbose:
        for line in _origins(settings):
            voice.say(line)
    return Invocation(settings=settings, reference=reference, directory=directory)


def _origins(settings: Settings) -> list[str]:
    """Return `setting name=calibrate.margin value=15% origin="env BATCHCAL_MARGIN"` for each setting that is not a default."""
    from batchcal.core.progress import key_values

    return [
        key_values("setting", {"name": f"{table}.{key}", "value": text, "origin": origin})
        for table, key, text, origin in settings.given()
    ]


def options_from(settings: Settings, *, limit_bytes: int, like: Options | None = None) -> Options:
    """Return the options of a calibration, from settings.

    Args:
        like: the options of an existing calibration, used for options that are not set.

    Raises:
        UsageError: a value is out of its range, or two values contradict each other.
    """
    from batchcal.measure.options import with_defaults

    requested: dict[str, object] = {}
    for option in (*CalibrateSettings.options(), *PlanSettings.options()):
        keeps = like is not None and option not in OF_THIS_COMMAND and not settings.is_set(option)
        requested[option.field] = getattr(like, option.field) if keeps else settings.value(option)
    if like is not None and not settings.is_set(CalibrateSettings.margin):
        requested["accelerator_margin"] = like.accelerator_margin
    return with_defaults(limit_bytes, requested)
