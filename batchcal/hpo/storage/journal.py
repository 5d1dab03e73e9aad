"""Journal file of a study: one record per line, and never an incomplete record followed by another."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from pathlib import Path
from typing import Final

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from batchcal.core.files import check_target
from batchcal.hpo.storage.presence import has_ended, identity

BEGINS: Final = b'{"op_code":'
"""First bytes of a journal. Its first record is the creation of a study."""
FOREIGN_GRACE_S: Final = 30.0
"""Seconds until the lock of a process that cannot be checked from here is removed. Appending a record takes milliseconds."""
LONGEST_WAIT_S: Final = 0.1
_CHUNK: Final = 1 << 16


def open_journal(path: str) -> JournalStorage:
    """Open the journal at `path`, and create it if it does not exist."""
    return JournalStorage(JournalFileBackend(path, lock_obj=MendingLock(path)))


def check_journal(path: Path) -> None:
    """Raises:
    UsageError: the file is of another kind. Records would be appended to it.
    """
    check_target(
        path,
        name="the storage",
        document="a journal of a study",
        is_ours=lambda begin: begin.startswith(BEGINS[: len(begin)]),
        example="study.journal",
        special=True,
        instead='storage = "study.journal"',
    )


class MendingLock(JournalFileSymlinkLock):
    """Lock of the process that appends: a symbolic link beside the journal. Its target names the holder.

    The link of a killed holder is removed at once if its process can be checked from here. Optuna's own lock waits 30 s for
    that, and forever if its link dangles. Before it appends, the holder removes an incomplete last line, which a full disk or a
    power cut left. The next record would continue this line, and the result could not be read.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = Path(path)
        self._link = lock_link(self._path)
        self._holder = ""

    def acquire(self) -> bool:
        holder = f"{identity()}#{secrets.token_hex(4)}"
        wait_s, unchanged_since, last = 0.001, time.monotonic(), ""
        while True:
            try:
                self._link.symlink_to(holder)
                break
            except FileExistsError:
                pass
            current_holder = _holder_of(self._link)
            if current_holder != last:
                last, unchanged_since = current_holder, time.monotonic()
            if remove_abandoned(self._path) or time.monotonic() - unchanged_since > FOREIGN_GRACE_S:
                _remove(self._link, last)
                continue
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        self._holder = holder
        try:
            mend(self._path)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        _remove(self._link, self._holder)


def lock_link(path: Path) -> Path:
    """Return the lock beside the journal: `study.journal` -> `study.journal.lock`."""
    return path.with_name(f"{path.name}.lock")


def remove_abandoned(path: Path) -> bool:
    """Remove the lock of the journal at `path` if its holder is gone. Return True if there was such a lock."""
    link = lock_link(path)
    holder = _holder_of(link)
    if not holder or not has_ended(holder.partition("#")[0], None):
        return False
    # Two processes that both read the name of the dead holder must not remove the lock of a third.
    with contextlib.suppress(OSError), path.open("rb") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        _remove(link, holder)
    return True


def _holder_of(link: Path) -> str:
    """Return the holder of the lock. Empty: the lock is free."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _remove(link: Path, holder: str) -> None:
    if holder and _holder_of(link) == holder:
        link.unlink(missing_ok=True)


def mend(path: Path) -> None:
    """Remove everything after the last complete line.

    Raises:
        ValueError: the file is not a journal. It stays unchanged.
    """
    with path.open("r+b") as file:
        begins = file.read(len(BEGINS))
        if begins != BEGINS[: len(begins)]:
            raise ValueError(f"{path} is not a journal of a study")
        end = file.seek(0, os.SEEK_END)
        complete_end = end
        while complete_end > 0:
            begin = max(complete_end - _CHUNK, 0)
            file.seek(begin)
            place = file.read(complete_end - begin).rfind(b"\n")
            if place >= 0:
                complete_end = begin + place + 1
                break
            complete_end = begin
        if complete_end < end:
            file.truncate(complete_end)
