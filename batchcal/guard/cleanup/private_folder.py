"""Folder for the files of children. Only this user can read it, and it is removed however this process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Final

from batchcal.core.errors import GuardError
from batchcal.guard.cleanup.shared_names import own_shared_names, sweep_abandoned

PREFIX: Final = "batchcal-"
OWNER: Final = ".batchcal-owner"
"""A file in each home. The owner of the home locks it as long as it runs. Only a folder with an unlocked file was left behind:
a user's own folder can be called batchcal-results."""


class PrivateFolder:
    """A new folder in the system's directory for temporary files. Folders that killed processes left there are removed.

    Raises:
        GuardError: the folder cannot be created.
    """

    def __init__(self) -> None:
        self._owned = -1
        try:
            # The name first: a signal can arrive at any line, and a folder without an owner stays.
            self.path = Path(tempfile.gettempdir()) / f"{PREFIX}{secrets.token_hex(6)}"
            self._make()
        except OSError as error:
            raise no_room(error) from error
        for other in self.path.parent.glob(f"{PREFIX}*/{OWNER}"):
            if other.parent != self.path:
                _remove_abandoned(other)
        sweep_abandoned()

    def _make(self) -> None:
        try:
            self.path.mkdir(mode=0o700)
            self._owned = os.open(self.path / f"{OWNER}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(OSError):  # no locks on this file system: with OWNER it would look abandoned
                fcntl.flock(self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (self.path / f"{OWNER}.new").rename(self.path / OWNER)  # only now: no process may see it unlocked
        except FileExistsError:  # the folder of another process
            raise
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the folder with its content. A second call does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._owned >= 0:
            os.close(self._owned)
            self._owned = -1


def keep_shared_names() -> None:
    """Give this process a home for the sockets of its DataLoader workers, and semaphores with its own name.

    The home is removed after multiprocessing has ended the workers. The next process that makes a home removes the home of a
    killed process.
    """
    with contextlib.suppress(GuardError):
        home = PrivateFolder()
        own_shared_names(home.path)
        Finalize(None, home.remove, exitpriority=-100)


def no_room(error: OSError) -> GuardError:
    """Return the error if the files of a child cannot be written."""
    folder = os.environ.get("TMPDIR", "/tmp, because TMPDIR is not set")
    return GuardError(
        "the temporary files of a child process cannot be written",
        known=f"{error.strerror or error}; temporary files are written to {folder}",
        try_="TMPDIR=/a/folder/with/free/space",
    )


def _remove_abandoned(owner: Path) -> None:
    """Remove the folder of `owner` if it belongs to this user and no process holds its lock."""
    with contextlib.suppress(OSError):
        if owner.parent.lstat().st_uid != os.getuid() or owner.parent.is_symlink():
            return
        descriptor = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)
        finally:
            os.close(descriptor)
