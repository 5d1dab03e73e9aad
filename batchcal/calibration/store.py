"""Where a calibration lies, how it gets there and how it comes back. What is on disk never raises: it is a value."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from batchcal.calibration.freshness import check
from batchcal.calibration.keys import Key, Trust
from batchcal.calibration.schema import FORMAT, Calibration, Fingerprint, Options
from batchcal.calibration.seal import Opened, seal, unseal
from batchcal.calibration.stale import Stale
from batchcal.core.canonical import MAX_BYTES, BadJson, dumps_line
from batchcal.core.errors import NoCalibration, NotSaved, UsageError
from batchcal.core.files import FileRefused, read_guarded, write_atomically
from batchcal.core.values import Frozen
from batchcal.detect.environment import Environment
from batchcal.workload.identity import TaskIdentity

PATH_VARIABLE: Final = "BATCHCAL_CALIBRATION"
FOLDER: Final = ".batchcal"
NAME: Final = "calibration.json"
_MODE: Final = 0o644
"""Less the umask. It holds no secret, and who runs `show` on the host is often not who calibrated in the container."""
_PROJECT_MARKS: Final = ("batchcal.toml", "pyproject.toml", ".git")

_WHY_NOT_SAVED: Final[dict[int, str]] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the folder may not be written",
    errno.EPERM: "the folder may not be written",
    errno.EBUSY: "the file is a mount of its own and cannot be replaced; mount its folder instead",
    errno.EXDEV: "the file is a mount of its own and cannot be replaced; mount its folder instead",
}


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


def default_path(directory: Path, environ: Mapping[str, str]) -> Path:
    """Where a calibration made in `directory` is written.

    BATCHCAL_CALIBRATION (relative to `directory`), else `.batchcal/calibration.json` of the project, which is the nearest folder
    upwards with a batchcal.toml, a pyproject.toml or a .git, or `directory` itself; else, where that cannot be written, a place
    of this project in the user's cache.

    Raises:
        UsageError: BATCHCAL_CALIBRATION begins with a `~` that means nobody.
    """
    named = environ.get(PATH_VARIABLE)
    if named:
        try:
            return directory.absolute() / Path(named).expanduser()
        except RuntimeError as error:
            raise UsageError(f"{PATH_VARIABLE}={named} cannot be used", known=str(error), try_="an absolute path") from None
    project = find_project(directory)
    if _can_write(project):
        return project / FOLDER / NAME
    import platformdirs

    # The path, not the name: every second project is called `app`.
    place = f"{project.name or 'root'}-{hashlib.sha256(os.fsencode(project)).hexdigest()[:16]}"
    return platformdirs.user_cache_path("batchcal", appauthor=False) / place / NAME


def existing_path(directory: Path, environ: Mapping[str, str]) -> Path:
    """Where to read: `default_path`, or the project's own file where only that is there (an image with a calibration baked in and
    a read-only root).

    Raises:
        UsageError: as `default_path`.
    """
    path = default_path(directory, environ)
    baked_in = find_project(directory) / FOLDER / NAME
    return baked_in if not environ.get(PATH_VARIABLE) and not _exists(path) and _exists(baked_in) else path


def find_project(directory: Path) -> Path:
    """The nearest folder upwards that looks like a project, else `directory`. Absolute."""
    start = directory.absolute()
    marked = (folder for folder in (start, *start.parents) if any(_exists(folder / mark) for mark in _PROJECT_MARKS))
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


def why_not_written(error: OSError) -> str:
    """In words that say what to change."""
    return _WHY_NOT_SAVED.get(error.errno or 0, error.strerror or str(error))


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
        return Calibration.model_validate_json(dumps_line(opened.payload), strict=True), opened.notices
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return Stale(reason="malformed", detail=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")


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
    return found if stale is None else stale


def refusal(found: Stale | Missing, path: Path) -> NoCalibration:
    """The error for who needs a calibration and has none."""
    if isinstance(found, Missing):
        return NoCalibration(f"no calibration at {path}", try_="batchcal calibrate SPEC, or --calibration FILE")
    return NoCalibration(
        f"the calibration at {path} may not be used: {found.reason}", known=found.detail, try_=_next_step(found, path)
    )


def _next_step(stale: Stale, path: Path) -> str:
    match stale.reason:
        case "newer-format":
            return "pip install --upgrade batchcal, or batchcal calibrate --force to measure again with this version"
        case "not-ours":
            return f"look at it with ls -l {path}; batchcal calibrate --force measures again"
        case "bad-signature" | "unsigned":
            return f"the BATCHCAL_KEY_FILE it was signed with, or batchcal calibrate --force to measure again; look at {path}"
        case _:
            return "batchcal calibrate SPEC"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it may not be searched
        return False


def _can_write(project: Path) -> bool:
    # access() knows about read-only file systems too, for root as well.
    folder = project / FOLDER
    return os.access(folder if _exists(folder) else project, os.W_OK | os.X_OK)
