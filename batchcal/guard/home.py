"""A folder for children's files, which nobody but us can read, and which somebody removes however we end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from batchcal.core.errors import GuardError

PREFIX: Final = "batchcal-"
OWNER: Final = ".batchcal-owner"
"""A file in each home, locked by its owner for as long as that lives. Only what has it and is not locked was left behind: a
folder of the user's own may well be called batchcal-results."""


class Home:
    """A new folder in the system's place for temporary files. Those that killed processes left there are removed.

    Raises:
        GuardError: there is no place for one.
    """

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._owned = os.open(self.path / f"{OWNER}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise no_room(error) from error
        with contextlib.suppress(OSError):  # no locks on this file system: then nobody can tell it from one left behind
            fcntl.flock(self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (self.path / f"{OWNER}.new").rename(self.path / OWNER)  # only now: nobody is to find it unlocked
        for other in self.path.parent.glob(f"{PREFIX}*/{OWNER}"):
            if other.parent != self.path:
                _remove_abandoned(other)

    def remove(self) -> None:
        """With everything in it. Does nothing the second time."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._owned >= 0:
            os.close(self._owned)
            self._owned = -1


def no_room(error: OSError) -> GuardError:
    """For when a child's files cannot be written."""
    folder = os.environ.get("TMPDIR", "/tmp, since TMPDIR is not set")
    return GuardError(
        "there is no place for a child's files",
        known=f"{error.strerror or error}; temporary files are written to {folder}",
        try_="TMPDIR=/a/folder/with/some/room",
    )


def _remove_abandoned(owner: Path) -> None:
    """Removes the folder of `owner` where it is ours and nobody holds its lock."""
    with contextlib.suppress(OSError):
        if owner.parent.lstat().st_uid != os.getuid() or owner.parent.is_symlink():
            return
        descriptor = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)
        finally:
            os.close(descriptor)
