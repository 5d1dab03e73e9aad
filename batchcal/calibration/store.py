"""Where a calibration lies, how it gets there and how it comes back. What is on disk never raises: it is a value."""

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
from batchcal.calibration.seal import Opened, seal, unseal
from batchcal.calibration.stale import Stale
from batchcal.calibration.upgrade import upgraded
from batchcal.core.canonical import MAX_BYTES, BadJson, dumps_line, loads
from batchcal.core.errors import NoCalibration, NotSaved, UsageError
from batchcal.core.files import FileRefused, read_guarded, why_not_written, write_atomically
from batchcal.core.values import Frozen
from batchcal.detect.environment import Environment
from batchcal.workload.identity import TaskIdentity

PATH_VARIABLE: Final = "BATCHCAL_CALIBRATION"
FOLDER: Final = ".batchcal"
NAME: Final = "calibration.json"
"""Where earlier versions kept the calibration of every task, and what examples call one. See `locate` for today's names."""
_MODE: Final = 0o644
"""Less the umask. It holds no secret, and who runs `show` on the host is often not who calibrated in the container."""
_PROJECT_MARKS: Final = ("batchcal.toml", "pyproject.toml", ".git")


class Loaded(Frozen):
    """A calibration whose seal held. Whether it is fresh is another question."""

    path: Path
    calibration: Calibration
    notices: tuple[str, ...] = ()
    """What the reader should know: unsigned, signed elsewhere, a group may write it."""


class Missing(Frozen):
    """There is no file."""

    path: Path

    def __str__(self) -> str:
        return f"there is no {self.path}"


def named_path(directory: Path, environ: Mapping[str, str]) -> Path | None:
    """The file that BATCHCAL_CALIBRATION names, relative to `directory`. None: it is not set.

    Raises:
        UsageError: it begins with a `~` of an unknown user.
    """
    named = environ.get(PATH_VARIABLE)
    if not named:
        return None
    try:
        return directory.absolute() / Path(named).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{PATH_VARIABLE}={named} cannot be used", known=str(error), try_="an absolute path") from None


def default_folder(directory: Path) -> Path:
    """`.batchcal` of the project of `directory`; where that cannot be written, a place of this project in the user's cache."""
    project = find_project(directory)
    return project / FOLDER if _can_write(project) else cache_folder(project)


def cache_folder(project: Path) -> Path:
    """The folder of `project` in the user's cache."""
    import platformdirs

    return platformdirs.user_cache_path("batchcal", appauthor=False) / place_name(project)


def place_name(project: Path) -> str:
    """A folder name for `project`, by its path: every second project is called `app`."""
    return f"{project.name or 'root'}-{hashlib.sha256(os.fsencode(project)).hexdigest()[:16]}"


def find_project(directory: Path) -> Path:
    """The nearest folder upwards that looks like a project, else `directory`. Absolute."""
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
    """Make the folder of `path`; a `.batchcal` folder ignores itself in git.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ignore = path.parent / ".gitignore"
    if path.parent.name == FOLDER and not ignore.exists():
        with contextlib.suppress(OSError):
            write_atomically(ignore, b"*\n", mode=_MODE)


def save(calibration: Calibration, path: Path, *, key: Key | None = None) -> None:
    """Write it, signed where there is a key: the old file stays whole until the new one is.

    Raises:
        NotSaved: disk full, read-only, no right, too large; what was there before is untouched. Also where the new file is there
            and whole, but the disk failed to make its name durable.
    """
    try:
        data = seal(calibration.model_dump(mode="json"), key=key)
    except BadJson as error:
        raise not_saved(path, error.detail) from None
    if len(data) > MAX_BYTES:
        raise not_saved(path, f"it would hold {len(data)} bytes, and {MAX_BYTES} are read")
    try:
        make_folder(path)
        write_atomically(path, data, mode=_MODE)
    except OSError as error:
        raise not_saved(path, why_not_written(error)) from error


def not_saved(path: Path, why: str) -> NotSaved:
    """The error for a calibration that was measured and could not be kept."""
    return NotSaved(
        f"measured, but not saved to {path}",
        known=why,
        try_=f"--output FILE or {PATH_VARIABLE}=FILE, in a folder that can be written",
    )


def load(path: Path, *, trust: Trust) -> Loaded | Stale | Missing:
    """What is at `path`: a calibration that may be trusted, or why it may not. Never raises for what is on disk."""
    try:
        guarded = read_guarded(path, max_bytes=MAX_BYTES)
    except FileRefused as refused:
        if refused.reason == "missing":
            return Missing(path=path)
        return Stale(reason="malformed" if refused.reason == "too-large" else "not-ours", detail=refused.detail)
    opened = read(guarded.data, trust=trust)
    if isinstance(opened, Stale):
        return opened
    calibration, notices = opened
    return Loaded(path=path, calibration=calibration, notices=(*notices, *guarded.notices))


def read(data: bytes, *, trust: Trust) -> tuple[Calibration, tuple[str, ...]] | Stale:
    """The calibration in a file's bytes with the notices, or why it is refused."""
    opened = unseal(data, kind="calibration", newest=FORMAT, trust=trust)
    if not isinstance(opened, Opened):
        return opened
    try:
        # From JSON, and strictly: true is no number and 1.0 no count. Fields that we do not know stay.
        return Calibration.model_validate_json(dumps_line(upgraded(opened.payload)), strict=True), opened.notices
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return Stale(reason="malformed", detail=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")


def read_again(path: Path) -> Calibration:
    """The calibration at `path`, which this command has written or checked: neither its seal nor its age is looked at.

    Raises:
        OSError, BadJson, ValidationError: it is gone, or was changed since.
    """
    document = loads(path.read_bytes())
    return Calibration.model_validate_json(dumps_line(upgraded(document) if isinstance(document, dict) else document))


def load_fresh(
    path: Path,
    here: Fingerprint,
    *,
    at: datetime,
    trust: Trust,
    environment: Environment | None = None,
    task: TaskIdentity | None = None,
    options: Options | None = None,
) -> Loaded | Stale | Missing:
    """`load` and then `check`: Loaded means that it may be used here and now."""
    found = load(path, trust=trust)
    if not isinstance(found, Loaded):
        return found
    stale = check(found.calibration, here, at=at, environment=environment, task=task, options=options)
    if stale is not None:
        return stale
    if task is None:
        return found
    return found.model_copy(update={"notices": (*found.notices, *moved(found.calibration.task, task))})


def refusal(found: Stale | Missing, path: Path, *, spec: str = "SPEC") -> NoCalibration:
    """The error for a command that needs a calibration and has none.

    Args:
        spec: the task, where it is known.
    """
    if isinstance(found, Missing):
        usual = path.parent.name == FOLDER
        command = f"batchcal calibrate {quote(spec)}" + ("" if usual else f" --output {quote(str(path))}")
        return NoCalibration(
            f"no calibration{'' if spec == 'SPEC' else f' of {spec}'} {f'in {path.parent}' if usual else f'at {path}'}",
            known=f"commands look there unless they are given a file or {PATH_VARIABLE} names one"
            if usual
            else "there is no such file",
            try_=f"{command}    where SPEC is like train.py:task" if spec == "SPEC" else command,
        )
    if found.reason == "malformed" and path.suffix == ".py":
        return NoCalibration(
            f"{path} is not a calibration",
            known="it is a Python file",
            try_=f"batchcal show {quote(str(path))}:task    the calibration of a task in it\n"
            f"batchcal calibrate {quote(str(path))}:task    measures it",
        )
    return NoCalibration(
        f"the calibration at {path} may not be used: {found.reason}", known=found.detail, try_=_next_step(found, path, spec)
    )


def _next_step(stale: Stale, path: Path, spec: str) -> str:
    step = _step(stale, path, quote(spec))
    return f"{step}\nwhere SPEC is like train.py:task" if spec == "SPEC" else step


def _step(stale: Stale, path: Path, spec: str) -> str:
    match stale.reason:
        case "newer-format":
            return f"pip install --upgrade batchcal\nbatchcal calibrate {spec} --force    measures again with this version"
        case "not-ours":
            return f"ls -l {path}\nbatchcal calibrate {spec} --force    measures again"
        case "unsigned":
            return f"batchcal calibrate {spec} --force    measures again; signs with your key or BATCHCAL_KEY_FILE"
        case "bad-signature":
            return f"BATCHCAL_KEY_FILE with the key that it was signed with\nbatchcal calibrate {spec} --force    measures again"
        case "malformed":
            return f"batchcal calibrate {spec}    measures again\nor name another file: show FILE, plan --calibration FILE"
        case "other-options" | "other-memory":
            return f"batchcal calibrate {spec}    with the options of this command, such as --memory-limit"
        case _:
            return f"batchcal calibrate {spec}"


def exists(path: Path) -> bool:
    """Whether there is such a file, as far as this process may know."""
    try:
        return path.exists()
    except OSError:  # a folder above it may not be searched, or the name is too long
        return False


def _can_write(project: Path) -> bool:
    # access() knows about read-only file systems too, for root as well.
    folder = project / FOLDER
    return os.access(folder if exists(folder) else project, os.W_OK | os.X_OK)
