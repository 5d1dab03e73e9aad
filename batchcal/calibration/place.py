"""Choice of the path for a calibration. It is tested before any measurement, so that no result is lost because of its path."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from batchcal.calibration.locate import KIND, path_of, task_file
from batchcal.calibration.store import (
    FOLDER,
    NAME,
    PATH_VARIABLE,
    cache_folder,
    find_project,
    journal_path,
    make_folder,
    named_path,
    place_name,
)
from batchcal.core.errors import UsageError
from batchcal.core.files import check_target
from batchcal.workload.spec.reference import TaskReference

OUTPUT: Final = "--output"
_JOURNAL_BEGINS: Final = b'{"check":'


class Place(NamedTuple):
    path: Path
    notices: tuple[str, ...] = ()
    """Reason why it is not in the project's folder, and how later commands find it."""


def place_for(reference: TaskReference, environ: Mapping[str, str], output: Path | None = None, *, name: str = OUTPUT) -> Place:
    """Return the file for a calibration of a task.

    Args:
        output: explicit path. Default: BATCHCAL_CALIBRATION, which is also explicit, else the first writable folder of:
            `.batchcal` in the project, the user's cache, and a folder of the user for temporary files.
        name: the option that named `output`.

    Raises:
        UsageError: an explicit file cannot be written or is not a calibration, or no folder can be written.
    """
    directory = Path(reference.directory)
    explicit = check_explicit(directory, environ, output, name=name)
    if explicit is not None:
        return Place(explicit)
    project = find_project(directory)
    expected, file = path_of(reference, environ), task_file(reference)
    own = project / FOLDER / file
    reasons = [] if expected == own else [f"{own} cannot be written"]
    for path in dict.fromkeys((expected, cache_folder(project) / file, _temporary(project) / file)):
        try:
            _prepare(path)
        except UsageError as error:
            reasons.append(error.what)
            continue
        return Place(path, _notices(path, expected, reasons))
    raise UsageError(
        "no folder for the calibration can be written",
        known="; ".join(reasons),
        try_=f"{OUTPUT} FILE or {PATH_VARIABLE}=FILE, in a writable folder",
    )


def own_place(path: Path) -> Place:
    """Return `path` in one of our folders, such as that of a study. A damaged file there is replaced.

    Raises:
        UsageError: the file cannot be written.
    """
    _prepare(path)
    return Place(path)


def check_explicit(directory: Path, environ: Mapping[str, str], output: Path | None, *, name: str = OUTPUT) -> Path | None:
    """Return the file that `output` or BATCHCAL_CALIBRATION names. None: neither names a file.

    Raises:
        UsageError: see `check_place`.
    """
    path = output or named_path(directory, environ)
    if path is None:
        return None
    check_place(path, name=name if output is not None else PATH_VARIABLE)
    return path


def check_place(path: Path, *, name: str) -> None:
    """Raise UsageError if `path`, which the user named by `name`, cannot be written or is not a calibration."""
    check_target(path, name=name, document="a calibration", is_ours=is_calibration, example=NAME)
    journal = journal_path(path)
    if journal.exists():
        check_target(
            journal,
            name=f"{name} also writes a journal, and",
            document="a journal of a calibration",
            instead=f"{name}{'=' if name.isupper() else ' '}{path.with_name('other.json')}, or move {journal.name} away first",
            is_ours=lambda begin: begin.startswith(_JOURNAL_BEGINS),
            example="other.journal.jsonl",
        )


def is_calibration(begin: bytes) -> bool:
    """True if a file is a calibration, even if it is stale, damaged or signed by another key."""
    return begin.lstrip()[:1] == b"{" and KIND.search(begin) is not None


def _prepare(path: Path) -> None:
    """Check that `path` can be written. Any file of this name in one of our folders is ours, even if damaged."""
    with contextlib.suppress(OSError):  # the check reports the reason
        make_folder(path)
    check_target(path, name="the calibration", document="a calibration", is_ours=lambda begin: True, example=NAME)


def _notices(path: Path, expected: Path, reasons: list[str]) -> tuple[str, ...]:
    if not reasons:
        return ()
    hint = "later commands find it there" if path == expected else f"later commands find it with {PATH_VARIABLE}={path}"
    return (f"{reasons[0]}; the calibration is saved as {path}, and {hint}",)


def _temporary(project: Path) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"batchcal-{user}" / place_name(project)
