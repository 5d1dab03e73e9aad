"""Names that multiprocessing creates for a process outside of it: folders of sockets, and semaphores in /dev/shm.

By default neither name contains the process. The names that a killed process leaves cannot be attributed to it, and stay.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")
LONGEST_FOLDER_OF_SOCKETS: Final = 80
"""Longest path of the folder, bytes. The complete path of a socket has at most 107."""
_PREFIX: Final = "batchcal"
_WORKERS: Final = "pymp-batchcal-"
_LONGEST_NAME: Final = 42
"""Longest name of a folder for workers, bytes: two numbers of at most ten digits, and eight letters."""
_SEMAPHORE: Final = re.compile(rf"sem\.{_PREFIX}-(\d+)-(\d+)-.+")
"""Groups: namespace of process ids, process id."""


def own_shared_names(folder: Path) -> None:
    """Let multiprocessing and the DataLoader workers of this process create their sockets in `folder`, and semaphores with the id
    of this process in their names. The caller must remove `folder`."""
    with contextlib.suppress(KeyError, OSError):
        config = _config()
        if len(os.fsencode(folder)) <= LONGEST_FOLDER_OF_SOCKETS:
            config["tempdir"] = str(folder)
        if sys.platform == "linux":  # on other systems a name has at most 30 characters, and cannot be listed
            config["semprefix"] = f"/{_PREFIX}-{_space()}-{os.getpid()}"


class WorkerFolder:
    """A folder for the sockets of the processes that are forked inside the `with` block."""

    def __init__(self) -> None:
        self._path = tempfile.mkdtemp(prefix=f"{_WORKERS}{_space()}-{os.getpid()}-")

    def goes_with(self, owner: object) -> None:
        """Remove the folder when `owner` is freed."""
        weakref.finalize(owner, _remove_folder, self._path, os.getpid())

    def __enter__(self) -> None:
        _config()["tempdir"] = self._path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _config()["tempdir"] = None
        if error is not None:
            shutil.rmtree(self._path, ignore_errors=True)


def own_worker_folder() -> WorkerFolder | None:
    """Create a worker folder. None: this process has one, which its forked processes also use, or there is no place for it."""
    with contextlib.suppress(KeyError, OSError):
        room = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER_OF_SOCKETS - _LONGEST_NAME
        return WorkerFolder() if room and not _config().get("tempdir") else None
    return None


def _remove_folder(path: str, owner: int) -> None:
    """Remove the folder, but only in the process that created it: a forked process has the same finalizers."""
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


def _config() -> dict[str, object]:
    """Configuration of multiprocessing, which a process inherits. Its name is private, and there is no public one.

    Raises:
        KeyError: this Python uses another name.
    """
    config = vars(multiprocessing.current_process())["_config"]
    if not isinstance(config, dict):
        raise KeyError("_config")
    return config


def sweep_shared_memory(pids: set[int]) -> int:
    """Remove the files of dead processes from /dev/shm: tensors (`torch_PID_*`) and semaphores. Return the number of files."""
    return sum(_remove(name) for name, pid in _names() if pid in pids)


def sweep_abandoned() -> None:
    """Remove semaphores and worker folders of processes that were killed together with all processes that could remove them."""
    for name, pid in _names():
        if name.startswith("sem.") and not Path(f"/proc/{pid}").exists():
            _remove(name)
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_WORKERS}{_space()}-*"):
            parts = folder.name.removeprefix(_WORKERS).split("-")
            if len(parts) > 2 and not Path(f"/proc/{parts[1]}").exists() and folder.lstat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _names() -> list[tuple[str, int]]:
    """Names in /dev/shm with the process that created each."""
    try:
        names, space = os.listdir(SHARED_MEMORY), _space()
    except OSError:
        return []
    named: list[tuple[str, int]] = []
    for name in names:
        parts, semaphore = name.split("_"), _SEMAPHORE.fullmatch(name)
        if parts[0] == "torch" and len(parts) > 2 and parts[1].isdigit():
            named.append((name, int(parts[1])))
        elif semaphore is not None and semaphore[1] == space:
            named.append((name, int(semaphore[2])))
    return named


def _space() -> str:
    """Namespace of the process ids. The same id in another container means another process.

    Raises:
        OSError: the system has no namespaces.
    """
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _remove(name: str) -> bool:
    with contextlib.suppress(OSError):
        (SHARED_MEMORY / name).unlink()
        return True
    return False
