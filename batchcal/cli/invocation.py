"""Input of a command: the named task, the settings in force, the calibration and its freshness."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchcal.calibration.locate import find_calibration, named_by
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import UsageError
from batchcal.core.progress import key_values
from batchcal.core.settings import SettingSource, unknown_variables
from batchcal.measure.options import with_defaults
from batchcal.values.settings import CalibrateSettings, PlanSettings, Settings
from batchcal.workload.command.identity import command_reference
from batchcal.workload.command.template import template_of
from batchcal.workload.spec.config import project_source, read_config
from batchcal.workload.spec.target import reference_of

if TYPE_CHECKING:
    from batchcal.calibration.locate import Located
    from batchcal.calibration.schema import Options
    from batchcal.workload.spec.config import Config
    from batchcal.workload.spec.reference import TaskReference


COMMAND_OPTIONS: Final = (
    CalibrateSettings.time_limit,
    CalibrateSettings.max_probes,
    CalibrateSettings.seed,
    PlanSettings.effective_batch,
    PlanSettings.objective,
)
"""Options that a later command does not take from an earlier calibration."""


COMMAND_TIME_LIMIT_S: Final = 600.0
"""Default time limit of the calibration of a command: ten starts of a minute each. It ends earlier once the answer is known."""


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
            f"no task is given, and no batchcal.toml or [tool.batchcal] in {self.directory} or its parent folders names a task",
            known="a task is a function: def task(): return batchcal.Task(model=..., optimizer=..., train_data=..., loss=...)",
            try_="batchcal calibrate train.py:task          if the task is in train.py\n"
            "batchcal calibrate package.module:task    if the task can be imported\n"
            'batchcal calibrate                        if batchcal.toml has spec = "train.py:task" below [task]',
        )


def open_invocation(
    target: str | None,
    *,
    flags: Mapping[str, str | None],
    flag_names: Mapping[str, str] | None = None,
    config: str | None = None,
    revise: Callable[[Config], Config] = lambda config: config,
    messages: Messages,
    command: Sequence[str] | None = None,
) -> Invocation:
    """Read the existing configuration files.

    Args:
        target: a SPEC or a config, as typed.
        flags, flag_names: see `Settings`.
        config: a config with settings. It overrides a target that is also a config.
        revise: changes the config if the target is one.
        command: words of the command that is the training. None: a task is.

    Raises:
        UsageError: a file does not exist, a key is unknown, or the target has no known form.
    """
    directory = Path.cwd()
    files: list[SettingSource] = []
    reference: TaskReference | None = None
    if config is not None:
        config_file = read_config(directory / config, directory=directory)
        files.append(SettingSource(config, config_file.tables))
        reference = config_file.reference
    if target is not None and target.endswith(".toml"):
        target_config = revise(read_config(directory / target, directory=directory))
        reference = reference_of(target, directory=directory) if target_config.reference is None else target_config.reference
        files.append(SettingSource(target, target_config.tables))
    elif command is not None:
        reference = command_reference(template_of(command), directory)
    elif target is not None:
        reference = reference_of(target, directory=directory)
    project = project_source(directory)
    if project is not None:
        source, project_config = project
        files.append(source)
        reference = reference or project_config.reference
    settings = Settings(flags=flags, flag_names=flag_names, environ=os.environ, files=files)
    messages.settings = settings
    for text in unknown_variables(os.environ, Settings.options()):
        messages.print(f" note: {text}")
    if messages.verbose:
        for line in _origins(settings):
            messages.print(line)
    return Invocation(settings=settings, reference=reference, directory=directory)


def _origins(settings: Settings) -> list[str]:
    """Return `setting name=calibrate.margin value=15% origin="env BATCHCAL_MARGIN"` for each setting that is not a default."""
    return [
        key_values("setting", {"name": f"{table}.{key}", "value": text, "origin": origin})
        for table, key, text, origin in settings.non_defaults()
    ]


def options_from(settings: Settings, *, limit_bytes: int, existing: Options | None = None, of_command: bool = False) -> Options:
    """Return the options of a calibration, from settings.

    Args:
        of_command: a command is measured, which starts again for each probe: its default time limit is longer.
        existing: the options of an existing calibration, used for options that are not set.

    Raises:
        UsageError: a value is out of its range, or two values contradict each other.
    """
    requested: dict[str, object] = {}
    for option in (*CalibrateSettings.options(), *PlanSettings.options()):
        is_reused = existing is not None and option not in COMMAND_OPTIONS and not settings.is_set(option)
        requested[option.field] = getattr(existing, option.field) if is_reused else settings.value(option)
    if existing is not None and not settings.is_set(CalibrateSettings.margin):
        requested["accelerator_margin"] = existing.accelerator_margin
    if of_command and not settings.is_set(CalibrateSettings.time_limit):
        requested[CalibrateSettings.time_limit.field] = COMMAND_TIME_LIMIT_S
    return with_defaults(limit_bytes, requested)
