"""Locks of checkpoint files: a run holds a lock on the file that it writes until it ends. Does not load torch.

The lock is on the file itself: a killed run leaves no lock. Other containers and hosts observe it if the file system has locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from batchcal.core.errors import UsageError

_ATTEMPTS: Final = 20
_PAUSE_S: Final = 0.05
"""Pause between two attempts. Another process holds the lock for microseconds when it tests for one."""

_locked_files: dict[str, int | None] = {}
"""Absolute paths of the checkpoints of this process's runs: descriptor of the locked file. None: the file is not written yet."""


def locked_by(path: Path) -> str | None:
    """Return the other process that holds the lock on `path`: `process 123`. None: no other process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        inode = os.fstat(descriptor).st_ino
        if any(locked is not None and os.fstat(locked).st_ino == inode for locked in _locked_files.values()) or _lock(descriptor):
            return None
        return _owner(inode)
    finally:
        os.close(descriptor)


def refuse_in_use(path: Path, partial: Path) -> None:
    """Raises:
    UsageError: another run writes the checkpoint `path`.
    """
    owner = locked_by(path) or locked_by(partial)
    if owner is not None:
        raise _in_use(path, owner)


@contextlib.contextmanager
def checkpoint_lock(path: Path | None) -> Iterator[None]:
    """Hold the lock on the checkpoint of a run, also when a `PartialFile` replaces it.

    Raises:
        UsageError: another run holds it.
    """
    if path is None:
        yield
        return
    key = _key(path)
    try:
        descriptor = _open_locked(path, os.O_RDWR)
    except BlockingIOError as error:
        raise _in_use(path, str(error.strerror)) from None
    except OSError:  # it is not written yet, or a save reports why it cannot be written
        descriptor = None
    _locked_files[key] = descriptor
    try:
        yield
    finally:
        locked = _locked_files.pop(key, None)
        if locked is not None:
            os.close(locked)


class PartialFile:
    """The file `partial`, which becomes the checkpoint `path`. It is locked while it is written."""

    def __init__(self, path: Path, partial: Path) -> None:
        self._path, self._partial = path, partial
        self._descriptor: int | None = None

    def lock(self) -> None:
        """Create and lock the file.

        Raises:
            OSError: it cannot be created, or another run writes it.
        """
        try:
            self._descriptor = _open_locked(self._partial, os.O_RDWR | os.O_CREAT)
        except BlockingIOError as error:
            raise OSError(f"{error.strerror} writes the same checkpoint") from None

    def commit(self) -> None:
        """Replace the checkpoint by this file.

        Raises:
            OSError: the disk failed, or another run writes the checkpoint.
        """
        if self._descriptor is None:
            raise OSError(f"{self._partial} is not locked")
        os.fsync(self._descriptor)
        owner = locked_by(self._path)
        if owner is not None:
            raise OSError(f"{owner} writes the same checkpoint")
        self._partial.replace(self._path)
        descriptor, self._descriptor = self._descriptor, None
        key = _key(self._path)
        earlier: int | None = descriptor
        if key in _locked_files:
            earlier, _locked_files[key] = _locked_files[key], descriptor
        if earlier is not None:
            os.close(earlier)

    def discard(self) -> None:
        """Remove the file, if this process has locked it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._partial.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _open_locked(path: Path, flags: int) -> int:
    """Return the descriptor of the file that `path` names, as soon as the lock is held.

    Raises:
        BlockingIOError: another process holds the lock; `strerror` names it.
        OSError: the file cannot be opened.
    """
    owner = "another process"
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if not _lock(descriptor):
                owner = _owner(status.st_ino)
            elif os.path.samestat(status, path.stat()):  # it may have been renamed or removed meanwhile
                return descriptor
        os.close(descriptor)
    raise BlockingIOError(0, owner)


def _lock(descriptor: int) -> bool:
    """Return False if another process holds the lock. A file system without locks never refuses a lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _owner(inode: int) -> str:
    """Process that holds the lock, if this process can observe it: not in another container or on another host."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode) and int(fields[4]) > 0:
                return f"process {fields[4]}"
    return "another process"


def _in_use(path: Path, owner: str) -> UsageError:
    pid = owner.removeprefix("process ")
    stop = f"`kill {pid}` ends that run with a checkpoint" if pid.isdigit() else "stop that run, which ends with a checkpoint"
    return UsageError(
        f"{path} is the checkpoint of a run that is still active ({owner})",
        known="two runs cannot write the same checkpoint",
        try_=f"{stop}; or --checkpoint OTHER.pt for a separate run",
    )


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - without following links


def _close_in_child() -> None:
    """Close the files: a forked process, such as a DataLoader worker, would keep the lock of a killed run."""
    for descriptor in _locked_files.values():
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    _locked_files.clear()


os.register_at_fork(after_in_child=_close_in_child)
