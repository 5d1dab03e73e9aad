"""What a command works on: the task that was named, the settings that hold, the calibration and how fresh it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from batchcal.cli.voice import Voice
from batchcal.core.errors import UsageError
from batchcal.core.settings import Knob, Settings, Source, unknown_variables

if TYPE_CHECKING:
    from batchcal.calibration.schema import Objective, Options
    from batchcal.calibration.stale import Stale
    from batchcal.calibration.store import Loaded
    from batchcal.detect.environment import Environment
    from batchcal.workload.config import Config
    from batchcal.workload.reference import TaskReference

_PYPROJECT = "pyproject.toml"
T = TypeVar("T")


@dataclass(frozen=True)
class Desk:
    """Where the command was given, and what lies there."""

    settings: Settings
    reference: TaskReference | None
    """None: no task was named, and the project names none."""
    directory: Path

    def task(self) -> TaskReference:
        """The task.

        Raises:
            UsageError: there is none; says in five lines how to name one.
        """
        if self.reference is not None:
            return self.reference
        raise UsageError(
            f"which task? None is given, and no batchcal.toml or [tool.batchcal] from {self.directory} upwards has one",
            known="a task is a function: def task(): return batchcal.Task(model=..., optimizer=..., train_data=..., loss=...)",
            try_="batchcal calibrate train.py:task          where it is in train.py\n"
            "batchcal calibrate package.module:task    where it can be imported\n"
            'batchcal calibrate                        with [task] spec = "train.py:task" in batchcal.toml',
        )


def open_desk(
    target: str | None,
    *,
    flags: Mapping[str, str | None],
    spelled: Mapping[str, str] | None = None,
    config: str | None = None,
    revise: Callable[[Config], Config] = lambda config: config,
    voice: Voice,
) -> Desk:
    """Reads what files there are.

    Args:
        target: a SPEC or a config, as typed.
        flags, spelled: see `Settings`.
        config: a config with settings; stronger than a target that is one, too.
        revise: what the target, where it is a config, is to be taken for.

    Raises:
        UsageError: no such file, a key that there is not, a target in no known form.
    """
    from batchcal.workload.config import read_config
    from batchcal.workload.find import reference_of

    directory = Path.cwd()
    files: list[Source] = []
    reference: TaskReference | None = None
    if config is not None:
        read = read_config(directory / config, directory=directory)
        files.append(Source(config, read.tables))
        reference = read.reference
    if target is not None and target.endswith(".toml"):
        revised = revise(read_config(directory / target, directory=directory))
        reference = reference_of(target, directory=directory) if revised.reference is None else revised.reference
        files.append(Source(target, revised.tables))
    elif target is not None:
        reference = reference_of(target, directory=directory)
    found = _project(directory)
    if found is not None:
        source, of_project = found
        files.append(source)
        reference = reference or of_project.reference
    settings = Settings(flags=flags, spelled=spelled, environ=os.environ, files=files)
    for text in unknown_variables(os.environ):
        voice.say(f" note: {text}")
    if voice.verbose:
        for line in _origins(settings):
            voice.say(line)
    return Desk(settings=settings, reference=reference, directory=directory)


def _project(directory: Path) -> tuple[Source, Config] | None:
    """The nearest batchcal.toml or pyproject.toml with [tool.batchcal], upwards, no further than the repository's root."""
    from batchcal.workload.config import project_config

    for folder in (directory, *directory.parents):
        config = project_config(folder)
        if config is not None:
            own = folder / "batchcal.toml"
            path = own if own.is_file() else folder / _PYPROJECT
            name = path.name if folder == directory else str(path)
            return Source(name, config.tables, prefix="tool.batchcal." if path.name == _PYPROJECT else ""), config
        if (folder / ".git").exists():
            break
    return None


def _origins(settings: Settings) -> list[str]:
    """`setting calibrate.margin=15% origin="env BATCHCAL_MARGIN"`, for those that somebody set."""
    from batchcal.core.progress import key_values

    return [
        key_values("setting", {"name": f"{table}.{key}", "value": text, "origin": origin})
        for table, key, text, origin in settings.given()
    ]


def options_from(settings: Settings, *, limit_bytes: int, like: Options | None = None) -> Options:
    """What a calibration is asked for.

    Args:
        like: the options of a calibration that is there; what nobody set here is as it was there.

    Raises:
        UsageError: a value that cannot be, or two that contradict each other.
    """
    from batchcal.core import settings as knobs
    from batchcal.measure.options import options

    chosen = _Chosen(settings, like)
    return options(
        limit_bytes,
        margin=chosen.value(knobs.MARGIN, lambda was: was.margin),
        accelerator_margin=chosen.value(knobs.MARGIN, lambda was: was.accelerator_margin),
        headroom=chosen.value(knobs.HEADROOM, lambda was: was.headroom),
        memory_limit_bytes=chosen.value(knobs.MEMORY_LIMIT, lambda was: was.memory_limit_bytes),
        samples=chosen.value(knobs.SAMPLES, lambda was: was.samples),
        max_batch=chosen.value(knobs.MAX_BATCH, lambda was: was.max_batch),
        multiple_of=chosen.value(knobs.MULTIPLE_OF, lambda was: was.multiple_of),
        device=chosen.value(knobs.DEVICE, lambda was: was.device),
        allocator=chosen.value(knobs.ALLOCATOR, lambda was: was.allocator),
        activation_checkpointing=chosen.value(knobs.ACTIVATION_CHECKPOINTING, lambda was: was.activation_checkpointing),
        workers=chosen.value(knobs.WORKERS, lambda was: was.workers),
        effective_batch=settings.value(knobs.EFFECTIVE_BATCH),
        seed=settings.value(knobs.SEED),
        time_limit_s=settings.value(knobs.TIME_LIMIT),
        max_probes=settings.value(knobs.MAX_PROBES),
        objective=objective_of(settings.value(knobs.OBJECTIVE)),
    )


@dataclass(frozen=True)
class _Chosen:
    """Settings, with those of an earlier calibration in the place of defaults."""

    settings: Settings
    like: Options | None

    def value(self, knob: Knob[T], of: Callable[[Options], T]) -> T:
        setting = self.settings.of(knob)
        return of(self.like) if self.like is not None and setting.origin == "default" else setting.value


def objective_of(name: str) -> Objective:
    """The objective called `name`.

    Raises:
        UsageError: there is none.
    """
    if name == "memory":
        return "memory"
    if name == "throughput":
        return "throughput"
    raise UsageError(
        f"objective {name!r} is not known",
        known="there is memory: the largest micro-batches, and throughput: the fastest",
        try_="--objective throughput",
    )


def find_fresh(
    reference: TaskReference, options: Options, environment: Environment, path: Path, *, require_signature: bool
) -> Loaded | Stale | None:
    """The calibration at `path`, where it holds here and now for task and options; why it does not; None: there is none.

    Milliseconds: a command that finds a fresh file starts no child.
    """
    from batchcal.calibration.fingerprint import fingerprint_of
    from batchcal.calibration.keys import find_trust
    from batchcal.calibration.store import Missing, load_fresh
    from batchcal.core.clock import SystemClock
    from batchcal.workload.identity import identify

    identity = identify(reference)
    found = load_fresh(
        path,
        fingerprint_of(environment, identity, options, environ=os.environ),
        at=SystemClock().now(),
        trust=find_trust(os.environ, require_signature=require_signature),
        environment=environment,
        task=identity,
        options=options,
    )
    return None if isinstance(found, Missing) else found
