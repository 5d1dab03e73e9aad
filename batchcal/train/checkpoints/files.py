"""Checkpoint files of a project: their names, the newest of a task, and which ones are removed. Does not load torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
import zipfile
from pathlib import Path, PurePath
from typing import Final

from batchcal.train.checkpoints.lock import locked_by

KEPT_RUNS: Final = 2
"""Runs of a task whose checkpoints stay in the project's folder."""
_LONGEST_NAME: Final = 40
_RUN: Final = r"\d{8}T\d{6}-(\d+)(?:-([0-9a-f]{8}))?"
"""Start of the run in UTC, its process id, and the space of process ids. Former versions wrote no space."""
FOREIGN_AGE_S: Final = 3600.0
"""A file of another container or host, whose processes cannot be observed, is not removed before it was unchanged for this time.
A run writes every ten minutes by default."""
_BEGINS_BYTES: Final = 4096
"""The first entry of a checkpoint is its standing, which begins with these fields."""
_FIELDS: Final = (b"standing", b'"effective_batch":', b'"train_samples":')


def partial_path(path: Path) -> Path:
    """The file that becomes the checkpoint at `path` once it is complete. One name: a later attempt replaces an earlier one."""
    return path.with_name(f".{path.name}.partial")


def task_name(spec: str, directory: Path) -> str:
    """Short name of a task for file names: `train.task-1f0c9a`. The digits distinguish tasks of the same name in other files."""
    source, _, factory = spec.rpartition(":")
    if source.endswith(".py"):
        path = Path(os.path.abspath(directory / source))  # noqa: PTH100 - without following links
        source = path.relative_to(directory).as_posix() if path.is_relative_to(directory) else path.as_posix()
    digits = hashlib.sha256(f"{source}:{factory}".encode()).hexdigest()[:6]
    words = f"{PurePath(source).name.removesuffix('.py').rpartition('.')[2]}.{factory}"
    return f"{re.sub(r'[^A-Za-z0-9._]+', '_', words)[:_LONGEST_NAME].lstrip('.')}-{digits}"


def new_checkpoint(folder: Path, task: str) -> Path:
    """The checkpoint of a run of `task` that begins now in this process."""
    return folder / f"{task}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{process_space()}.pt"


def process_space() -> str:
    """Eight digits that distinguish the process ids of this host and container from those of others."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:8]


def newest_checkpoint(folder: Path, task: str) -> Path | None:
    """The checkpoint of `task` that was written last. None: there is none."""
    return next(iter(_newest_first(folder, task)), None)


def remove_older(folder: Path, task: str, current: Path) -> None:
    """Remove checkpoints of earlier runs of `task` beyond `KEPT_RUNS`, `current` included, and incomplete files of killed runs.

    A file that is not a checkpoint of batchcal stays, and so does the file of a run that is or may be active.
    """
    earlier = [path for path in _newest_first(folder, task) if path != current]
    for path in earlier[KEPT_RUNS - 1 :]:
        if not _may_be_active(path):
            _remove(path)
    for partial in _matching(folder, rf"\.{re.escape(task)}-{_RUN}\.pt\.partial"):
        if partial != partial_path(current) and not _may_be_active(partial):
            _remove(partial)


def is_checkpoint(path: Path) -> bool:
    """True if `path` is a file that batchcal wrote as a checkpoint, complete or not."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if name is None:
                return False
            with archive.open(name) as file:
                beginning = file.read(_BEGINS_BYTES)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return False
    return all(field in beginning for field in _FIELDS)


def _newest_first(folder: Path, task: str) -> list[Path]:
    paths = [path for path in _matching(folder, rf"{re.escape(task)}-{_RUN}\.pt") if is_checkpoint(path)]
    written: dict[Path, tuple[int, str]] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            written[path] = (path.stat().st_mtime_ns, path.name)
    return sorted(written, key=lambda path: written[path], reverse=True)


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Regular files of this user in `folder` with a name that matches `pattern`."""
    try:
        paths = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
        return [path for path in paths if path.is_file() and not path.is_symlink() and path.stat().st_uid == os.getuid()]
    except OSError:
        return []


def _may_be_active(path: Path) -> bool:
    """True if a run may still write `path`: its lock is held, its process is alive, or it ran elsewhere and wrote recently."""
    if locked_by(path) is not None:
        return True
    run = re.search(_RUN, path.name)
    if run is None:
        return False
    if run[2] != process_space():
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime < FOREIGN_AGE_S
        return False
    if int(run[1]) == os.getpid():  # an earlier process of the same space had this id
        return False
    try:
        os.kill(int(run[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
