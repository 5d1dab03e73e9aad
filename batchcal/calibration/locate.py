"""Location of a task's calibration: one file per task in the project's `.batchcal` folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Final, NamedTuple

from batchcal.calibration.keys import find_trust
from batchcal.calibration.store import (
    FOLDER,
    NAME,
    PATH_VARIABLE,
    Loaded,
    default_folder,
    exists,
    find_project,
    load,
    named_path,
)
from batchcal.core.canonical import MAX_BYTES, dumps
from batchcal.core.errors import UsageError
from batchcal.workload.command.template import Template
from batchcal.workload.spec.config import project_source
from batchcal.workload.spec.reference import TaskReference, parse_spec
from batchcal.workload.spec.target import reference_of

KIND: Final = re.compile(rb'"kind":\s*"calibration"')
_LONGEST_NAME: Final = 60


class Located(NamedTuple):
    """A calibration file and its task. None: the command named no task."""

    path: Path
    reference: TaskReference | None = None

    @property
    def spec(self) -> str:
        """The SPEC for messages."""
        return "SPEC" if self.reference is None else self.reference.spec


class SeveralCalibrations(UsageError):
    """A command named neither a task nor a file, and the project has several calibrations."""


def task_file(reference: TaskReference) -> str:
    """File name such as `train.task-1f0c9a3e.json`: a short name of the task, and eight digits from its SPEC and arguments. It is
    the same in every copy of the project."""
    if reference.command:
        return _command_file(reference)
    directory, project = Path(reference.directory).absolute(), find_project(Path(reference.directory))
    location, _, factory = reference.spec.rpartition(":")
    if location.endswith(".py"):
        location = _within(project, Path(os.path.abspath(directory / location)))  # noqa: PTH100 - symbolic links are not followed
        base = ""
    else:
        base = _within(project, directory)  # modules are searched from there
    identity = b"\0".join([os.fsencode(location), os.fsencode(base), factory.encode(), dumps(dict(reference.arguments))])
    words = f"{PurePath(location).name.removesuffix('.py').rpartition('.')[2]}.{factory}"
    name = re.sub(r"[^A-Za-z0-9._]+", "_", words)[:_LONGEST_NAME].lstrip(".")
    return f"{name}-{hashlib.sha256(identity).hexdigest()[:8]}.json"


def _command_file(reference: TaskReference) -> str:
    """File name such as `train-1f0c9a3e.json`: the script or the program, and eight digits from the words of the command."""
    directory, project = Path(reference.directory).absolute(), find_project(Path(reference.directory))
    argv = Template(words=reference.command).argv
    module = next((word for before, word in pairwise(argv) if before == "-m"), "")
    script = next((word for word in argv if word.endswith((".py", ".sh"))), module.rpartition(".")[2] or argv[0])
    stem = PurePath(script).name.removesuffix(".py").removesuffix(".sh")
    name = re.sub(r"[^A-Za-z0-9._]+", "_", stem)[:_LONGEST_NAME].lstrip(".")
    identity = b"\0".join([os.fsencode(_within(project, directory)), *map(os.fsencode, Template(words=reference.command).masked)])
    return f"{name}-{hashlib.sha256(identity).hexdigest()[:8]}.json"


def _within(project: Path, path: Path) -> str:
    return path.relative_to(project).as_posix() if path.is_relative_to(project) else path.as_posix()


def path_of(reference: TaskReference, environ: Mapping[str, str]) -> Path:
    """Return the path to which a calibration of the task is written.

    It is BATCHCAL_CALIBRATION, else the file of the task in `.batchcal` of the project. If that folder cannot be written, the
    file is in the user's cache.

    Raises:
        UsageError: see `named_path`.
    """
    directory = Path(reference.directory)
    return named_path(directory, environ) or default_folder(directory) / task_file(reference)


def existing_of(reference: TaskReference, environ: Mapping[str, str]) -> Path:
    """Return the path from which a calibration of the task is read: `path_of`, else the project's own file (an image with a
    baked-in calibration and a read-only root), else `calibration.json` of an earlier version if it belongs to this task.

    Raises:
        UsageError: see `named_path`.
    """
    path = path_of(reference, environ)
    if environ.get(PATH_VARIABLE) or exists(path):
        return path
    project = find_project(Path(reference.directory))
    baked_in = project / FOLDER / path.name
    if exists(baked_in):
        return baked_in
    earlier = (folder / NAME for folder in dict.fromkeys((path.parent, baked_in.parent)))
    return next((file for file in earlier if _is_of(reference, file, environ)), path)


def find_calibration(directory: Path, environ: Mapping[str, str], reference: TaskReference | None = None) -> Located:
    """Return the calibration for a command without a SPEC: BATCHCAL_CALIBRATION, else that of `reference`, else that of the task
    of batchcal.toml or [tool.batchcal], else the only one of the project. It may not exist.

    Args:
        reference: the task of the config that was passed to the command.

    Raises:
        SeveralCalibrations: no task is named, and the project has several calibrations.
        UsageError: see `named_path`; or a config cannot be read.
    """
    named = named_path(directory, environ)
    if named is not None:
        return Located(named, reference)
    if reference is None:
        project = project_source(directory)
        reference = None if project is None else project[1].reference
    if reference is not None:
        return Located(existing_of(reference, environ), reference)
    files = calibrations_in(directory)
    if len(files) > 1:
        files = [file for file in files if file.name != NAME or not _is_superseded(file, files, directory, environ)]
    if len(files) > 1:
        raise SeveralCalibrations(
            f"this project has {len(files)} calibrations, and none of them is named",
            known=", ".join(map(str, files)),
            try_=f"one of these paths, or a SPEC like train.py:task, as FILE or --calibration\n{PATH_VARIABLE}={files[0]}",
        )
    return Located(files[0] if files else default_folder(directory) / NAME)


def named_by(text: str, directory: Path, environ: Mapping[str, str]) -> Located:
    """Return the calibration that `text` names: a file, or the calibration of the task of a SPEC or a config.

    Raises:
        UsageError: the SPEC or the config has no task.
    """
    path = Path(text)
    if text.endswith(".toml") or (not exists(directory / path) and _is_spec(text)):
        reference = reference_of(text, directory=directory)
        project = project_source(directory)
        own = None if project is None else project[1].reference
        if own is not None and task_file(own.model_copy(update={"arguments": {}})) == task_file(reference):
            reference = own  # with the arguments from the project
        return Located(existing_of(reference, environ), reference)
    return Located(path)


def calibrations_in(directory: Path) -> list[Path]:
    """Return every calibration of the project, first those in the folder to which a command would write now."""
    folders = dict.fromkeys((default_folder(directory), find_project(directory) / FOLDER))
    calibrations: dict[str, Path] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob("*.json")):
                if path.name not in calibrations and _is_calibration(path):
                    calibrations[path.name] = path
    return list(calibrations.values())


def _is_spec(text: str) -> bool:
    try:
        spec = parse_spec(text)
    except UsageError:
        return False
    return spec.module is not None or (spec.file or "").endswith(".py")


def _is_calibration(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= MAX_BYTES and KIND.search(path.read_bytes()) is not None
    except OSError:
        return False


def _is_superseded(earlier: Path, files: Sequence[Path], directory: Path, environ: Mapping[str, str]) -> bool:
    """True if a file of an earlier version is obsolete: its task has been calibrated since, or it cannot be read."""
    loaded = load(earlier, trust=find_trust(environ))
    if not isinstance(loaded, Loaded):
        return True
    task, project = loaded.calibration.task, find_project(directory)
    own = task_file(TaskReference(spec=task.spec, directory=str(project), arguments=task.arguments))
    return own in {file.name for file in files}


def _is_of(reference: TaskReference, path: Path, environ: Mapping[str, str]) -> bool:
    if not exists(path) or reference.command:
        return False
    loaded = load(path, trust=find_trust(environ))
    if not isinstance(loaded, Loaded):
        return True  # a damaged file: the reader reports why it is not used
    task = loaded.calibration.task
    same = task_file(reference.model_copy(update={"spec": task.spec, "arguments": task.arguments}))
    return same == task_file(reference)
