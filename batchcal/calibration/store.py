"""Location, saving and loading of calibrations. Loading never raises for the contents of a file: it returns a value."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Final

from pydantic import ValidationError

from batchcal.calibration.freshness import check, moved
from batchcal.calibration.keys import Key, Trust
from batchcal.calibration.schema import FORMAT, Calibration, Fingerprint, Options
from batchcal.calibration.seal import Unsealed, seal, unseal
from batchcal.calibration.stale import Stale
from batchcal.calibration.upgrade import upgraded
from batchcal.core.canonical import MAX_BYTES, BadJson, dumps_line, loads
from batchcal.core.errors import NoCalibration, NotSaved, UsageError
from batchcal.core.files import FileRefused, read_guarded, why_not_written, write_atomically
from batchcal.core.values import Frozen
from batchcal.detect.environment import Environment
from batchcal.workload.spec.identity import TaskIdentity
from batchcal.workload.spec.reference import calibrate_line

PATH_VARIABLE: Final = "BATCHCAL_CALIBRATION"
FOLDER: Final = ".batchcal"
NAME: Final = "calibration.json"
"""File name of every calibration in earlier versions, and the name in examples. See `locate` for the current names."""
_MODE: Final = 0o644
"""Before the umask. It holds no secret, and often one user calibrates in the container and another runs `show` on the host."""
_PROJECT_MARKS: Final = ("batchcal.toml", "pyproject.toml", ".git")


class Loaded(Frozen):
    """A calibration with a valid seal. It may be stale."""

    path: Path
    calibration: Calibration
    notices: tuple[str, ...] = ()
    """Remarks for the reader: unsigned, signed elsewhere, writable by a group."""


class Missing(Frozen):
    """The file does not exist."""

    path: Path

    def __str__(self) -> str:
        return f"there is no {self.path}"


def named_path(directory: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the file that BATCHCAL_CALIBRATION names, relative to `directory`. None: the variable is not set.

    Raises:
        UsageError: the path begins with a `~` of an unknown user.
    """
    named = environ.get(PATH_VARIABLE)
    if not named:
        return None
    try:
        return directory.absolute() / Path(named).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{PATH_VARIABLE}={named} cannot be used", known=str(error), try_="an absolute path") from None


def default_folder(directory: Path) -> Path:
    """Return `.batchcal` of the project of `directory`. If it is not writable, the project's folder in the user's cache."""
    project = find_project(directory)
    return project / FOLDER if _can_write(project) else cache_folder(project)


def cache_folder(project: Path) -> Path:
    """The folder of `project` in the user's cache."""
    import platformdirs

    return platformdirs.user_cache_path("batchcal", appauthor=False) / place_name(project)


def place_name(project: Path) -> str:
    """Folder name for `project`, derived from its path: many projects are called `app`."""
    return f"{project.name or 'root'}-{hashlib.sha256(os.fsencode(project)).hexdigest()[:16]}"


def find_project(directory: Path) -> Path:
    """Return the nearest folder from `directory` upwards that looks like a project, else `directory`. Absolute."""
    start = directory.absolute()
    marked = (folder for folder in (start, *start.parents) if any(exists(folder / mark) for mark in _PROJECT_MARKS))
    return next(marked, start)


def journal_path(path: Path) -> Path:
    """`calibration.json` -> `calibration.journal.jsonl`, beside it."""
    return path.with_name(f"{path.stem}.journal.jsonl")


def lock_path(path: Path) -> Path:
    """`calibration.json` -> `calibration.json.lock`, beside it."""
    return path.with_name(f"{path.name}.lock")


def make_folder(path: Path) -> None:
    """Create the folder of `path`. A `.batchcal` folder gets a .gitignore that excludes it from git.

    Raises:
        OSError: the folder cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ignore = path.parent / ".gitignore"
    if path.parent.name == FOLDER and not ignore.exists():
        with contextlib.suppress(OSError):
            write_atomically(ignore, b"*\n", mode=_MODE)


def save(calibration: Calibration, path: Path, *, key: Key | None = None) -> None:
    """Write `calibration`, signed if there is a key. The old file stays intact until the new one is complete.

    Raises:
        NotSaved: disk full, read-only, no permission, too large. The old file is unchanged. Also if the new file is in place and
            complete, but the disk failed to make its name durable.
    """
    try:
        data = seal(calibration.model_dump(mode="json"), key=key)
    except BadJson as error:
        raise not_saved(path, error.detail) from None
    if len(data) > MAX_BYTES:
        raise not_saved(path, f"the file would have {len(data)} bytes, but the maximum is {MAX_BYTES}")
    try:
        make_folder(path)
        write_atomically(path, data, mode=_MODE)
    except OSError as error:
        raise not_saved(path, why_not_written(error)) from error


def not_saved(path: Path, why: str) -> NotSaved:
    """Return the error for a calibration that was measured but could not be saved."""
    return NotSaved(
        f"the measurements could not be saved to {path}",
        known=why,
        try_=f"--output FILE or {PATH_VARIABLE}=FILE, in a writable folder",
    )


def load(path: Path, *, trust: Trust) -> Loaded | Stale | Missing:
    """Return the calibration at `path`, or the reason why it may not be trusted. Never raises for the contents of the file."""
    try:
        guarded = read_guarded(path, max_bytes=MAX_BYTES)
    except FileRefused as refused:
        if refused.reason == "missing":
            return Missing(path=path)
        return Stale(reason="malformed" if refused.reason == "too-large" else "not-ours", detail=refused.detail)
    result = read(guarded.data, trust=trust)
    if isinstance(result, Stale):
        return result
    calibration, notices = result
    return Loaded(path=path, calibration=calibration, notices=(*notices, *guarded.notices))


def read(data: bytes, *, trust: Trust) -> tuple[Calibration, tuple[str, ...]] | Stale:
    """Return the calibration in a file's bytes with the notices, or the reason why it is refused."""
    result = unseal(data, kind="calibration", newest=FORMAT, trust=trust)
    if not isinstance(result, Unsealed):
        return result
    try:
        # From JSON, in strict mode: true is not a number and 1.0 is not a count. Unknown fields stay.
        return Calibration.model_validate_json(dumps_line(upgraded(result.payload)), strict=True), result.notices
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return Stale(reason="malformed", detail=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")


def read_again(path: Path) -> Calibration:
    """Return the calibration at `path`, which this command has written or checked. Its seal and its age are not checked.

    Raises:
        OSError, BadJson, ValidationError: the file is gone, or has changed since.
    """
    document = loads(path.read_bytes())
    return Calibration.model_validate_json(dumps_line(upgraded(document) if isinstance(document, dict) else document))


def load_fresh(
    path: Path,
    fingerprint: Fingerprint,
    *,
    at: datetime,
    trust: Trust,
    environment: Environment | None = None,
    task: TaskIdentity | None = None,
    options: Options | None = None,
) -> Loaded | Stale | Missing:
    """`load`, then `check`. Loaded means that the calibration may be used here and now."""
    loaded = load(path, trust=trust)
    if not isinstance(loaded, Loaded):
        return loaded
    stale = check(loaded.calibration, fingerprint, at=at, environment=environment, task=task, options=options)
    if stale is not None:
        return stale
    if task is None:
        return loaded
    return loaded.model_copy(update={"notices": (*loaded.notices, *moved(loaded.calibration.task, task))})


def refusal(problem: Stale | Missing, path: Path, *, spec: str = "SPEC") -> NoCalibration:
    """Return the error for a command that needs a calibration and has none.

    Args:
        spec: the task, if it is known.
    """
    if isinstance(problem, Missing):
        in_project = path.parent.name == FOLDER
        command = calibrate_line(spec, "" if in_project else f"--output {quote(str(path))}")
        return NoCalibration(
            f"no calibration{'' if spec == 'SPEC' else f' of {spec}'} {f'in {path.parent}' if in_project else f'at {path}'}",
            known=f"commands look in this folder, unless an argument or {PATH_VARIABLE} names a file"
            if in_project
            else "the file does not exist",
            try_=f"{command}    where SPEC is like train.py:task" if spec == "SPEC" else command,
        )
    if problem.reason == "malformed" and path.suffix == ".py":
        return NoCalibration(
            f"{path} is not a calibration",
            known="it is a Python file",
            try_=f"batchcal show {quote(str(path))}:task    the calibration of a task in it\n"
            f"batchcal calibrate {quote(str(path))}:task    measures it",
        )
    return NoCalibration(
        f"the calibration at {path} cannot be used: {problem.reason}", known=problem.detail, try_=_next_step(problem, path, spec)
    )


def check_settled(calibration: Calibration) -> None:
    """Do nothing if the search of a calibration with a verified batch size has finished.

    Raises:
        NoCalibration: it has not.
    """
    if calibration.status != "unsettled":
        return
    raise NoCalibration(
        "the search of the calibration did not finish, and --require-settled was given",
        known="; ".join(part.text for part in calibration.undone),
        try_=f"{calibrate_line(calibration.task.spec, f'--time-limit {2 * calibration.options.time_limit_s:.0f}s')}    "
        "continues it, with the options that it was made with",
    )


def _next_step(stale: Stale, path: Path, spec: str) -> str:
    step = _step(stale, path, spec)
    return f"{step}\nwhere SPEC is like train.py:task" if spec == "SPEC" else step


def _step(stale: Stale, path: Path, spec: str) -> str:
    line, force = calibrate_line(spec), calibrate_line(spec, "--force")
    match stale.reason:
        case "newer-format":
            return f"pip install --upgrade batchcal\n{force}    measures again with this version"
        case "not-ours":
            return f"ls -l {path}\n{force}    measures again"
        case "unsigned":
            return f"{force}    measures again, and signs with your key or BATCHCAL_KEY_FILE"
        case "bad-signature":
            return f"BATCHCAL_KEY_FILE=FILE    FILE contains the key that signed it\n{force}    measures again"
        case "malformed":
            return f"{line}    measures again\nor name another file: show FILE, plan --calibration FILE"
        case "other-options" | "other-memory":
            return f"{line}    with the options of this command, such as --memory-limit"
        case _:
            return f"{line}"


def exists(path: Path) -> bool:
    """True if the file exists. False if this process cannot determine it."""
    try:
        return path.exists()
    except OSError:  # a parent folder cannot be searched, or the name is too long
        return False


def _can_write(project: Path) -> bool:
    # access() also detects read-only file systems, even for root.
    folder = project / FOLDER
    return os.access(folder if exists(folder) else project, os.W_OK | os.X_OK)
