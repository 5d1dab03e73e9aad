"""A study's journal file: one record a line, and never half of one followed by another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

BEGINS: Final = b'{"op_code":'
"""A journal; its first record is the creation of a study."""
_CHUNK: Final = 1 << 16


def open_journal(path: str) -> JournalStorage:
    """Made where there is none."""
    return JournalStorage(JournalFileBackend(path, lock_obj=MendingLock(path)))


class MendingLock(JournalFileSymlinkLock):
    """The lock of who appends, who first removes a line that has no end: a full disk or a power cut left it. What is written
    after it would be one record with it, which nobody can read."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = Path(path)

    def acquire(self) -> bool:
        held = super().acquire()
        try:
            mend(self._path)
        except BaseException:
            self.release()
            raise
        return held


def mend(path: Path) -> None:
    """Cuts off what stands after the last whole line.

    Raises:
        ValueError: it is no journal, and stays as it is.
    """
    with path.open("r+b") as file:
        begins = file.read(len(BEGINS))
        if begins != BEGINS[: len(begins)]:
            raise ValueError(f"{path} is no journal of a study")
        end = file.seek(0, os.SEEK_END)
        whole = end
        while whole > 0:
            begin = max(whole - _CHUNK, 0)
            file.seek(begin)
            place = file.read(whole - begin).rfind(b"\n")
            if place >= 0:
                whole = begin + place + 1
                break
            whole = begin
        if whole < end:
            file.truncate(whole)
