"""Names outside of a process that multiprocessing makes for it: folders of sockets, and semaphores in /dev/shm.

By itself multiprocessing names neither after its process: what a killed one leaves cannot be attributed, and stays.
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
"""Bytes; the complete path of a socket may have 107."""
_PREFIX: Final = "batchcal"
_WORKERS: Final = "pymp-batchcal-"
_LONGEST_NAME: Final = 42
"""Of such a folder: two numbers of ten digits at most, and eight letters."""
_SEMAPHORE: Final = re.compile(rf"sem\.{_PREFIX}-(\d+)-(\d+)-.+")
"""Space of process ids, process id."""


def own_shared_names(folder: Path) -> None:
    """Let multiprocessing, and the DataLoader workers that it starts for us, make their sockets in `folder`, and semaphores whose
    names hold our process id. `folder` must be removed by the caller."""
    with contextlib.suppress(KeyError, OSError):
        config = _config()
        if len(os.fsencode(folder)) <= LONGEST_FOLDER_OF_SOCKETS:
            config["tempdir"] = str(folder)
        if sys.platform == "linux":  # elsewhere a name has 30 characters at most, and cannot be listed
            config["semprefix"] = f"/{_PREFIX}-{_space()}-{os.getpid()}"


class WorkerFolder:
    """A folder for the sockets of the processes that are forked while entered."""

    def __init__(self) -> None:
        self._path = tempfile.mkdtemp(prefix=f"{_WORKERS}{_space()}-{os.getpid()}-")

    def goes_with(self, owner: object) -> None:
        """Remove it when `owner` goes."""
        weakref.finalize(owner, _remove_folder, self._path, os.getpid())

    def __enter__(self) -> None:
        _config()["tempdir"] = self._path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _config()["tempdir"] = None
        if error is not None:
            shutil.rmtree(self._path, ignore_errors=True)


def own_worker_folder() -> WorkerFolder | None:
    """None: this process has a folder, which the processes that it forks use, too; or there is no place for one."""
    with contextlib.suppress(KeyError, OSError):
        room = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER_OF_SOCKETS - _LONGEST_NAME
        return WorkerFolder() if room and not _config().get("tempdir") else None
    return None


def _remove_folder(path: str, owner: int) -> None:
    """In the process that made it: a forked one has the same finalizers."""
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


def _config() -> dict[str, object]:
    """Of multiprocessing, which a process inherits: a private name, and the only one that there is.

    Raises:
        KeyError: this Python has another one.
    """
    config = vars(multiprocessing.current_process())["_config"]
    if not isinstance(config, dict):
        raise KeyError("_config")
    return config


def sweep_shared_memory(pids: set[int]) -> int:
    """Remove what dead processes of ours left in /dev/shm: tensors (`torch_PID_*`) and semaphores. Returns how many."""
    return sum(_remove(name) for name, pid in _names() if pid in pids)


def sweep_abandoned() -> None:
    """Remove semaphores and folders of workers of processes that were killed together with all that could have removed them."""
    for name, pid in _names():
        if name.startswith("sem.") and not Path(f"/proc/{pid}").exists():
            _remove(name)
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_WORKERS}{_space()}-*"):
            parts = folder.name.removeprefix(_WORKERS).split("-")
            if len(parts) > 2 and not Path(f"/proc/{parts[1]}").exists() and folder.lstat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _names() -> list[tuple[str, int]]:
    """Names in /dev/shm with the process that made them."""
    try:
        names, space = os.listdir(SHARED_MEMORY), _space()
    except OSError:
        return []
    found: list[tuple[str, int]] = []
    for name in names:
        parts, semaphore = name.split("_"), _SEMAPHORE.fullmatch(name)
        if parts[0] == "torch" and len(parts) > 2 and parts[1].isdigit():
            found.append((name, int(parts[1])))
        elif semaphore is not None and semaphore[1] == space:
            found.append((name, int(semaphore[2])))
    return found


def _space() -> str:
    """Of the process ids: those of another container mean other processes.

    Raises:
        OSError: the system has none.
    """
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _remove(name: str) -> bool:
    with contextlib.suppress(OSError):
        (SHARED_MEMORY / name).unlink()
        return True
    return False
