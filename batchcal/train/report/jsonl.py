"""The log of a run: one JSON object per line, in the file before the next step begins."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from batchcal.core.clock import Clock, SystemClock
from batchcal.core.errors import UsageError
from batchcal.core.files import check_target, write_all
from batchcal.core.progress import Fields
from batchcal.train.report.events import NOTICE, STARTED
from batchcal.train.report.line import line_of
from batchcal.values.training_events import FORMAT, KIND

RETRY_S: Final = 1.0
"""Seconds between a failed write and the next attempt."""
_EARLY: Final = 100
"""Maximum number of events kept before the run begins."""
_FIRST_LINE: Final = 1 << 16
_MODE: Final = 0o644


class JsonlLog:
    """Writer of events as `{"event": "step", "at": 12.345678, ...}`, `at` in seconds since this process began to train.

    The first line is `training_started`, with the properties of the run. A resumed run continues in the same file. The log of
    another, earlier run is renamed to `run.1.jsonl`. Each line is passed to the kernel completely: only a power failure can lose
    it. A full disk does not stop a training: it is reported once, and the file records the number of missing lines as soon as it
    can be written again.
    """

    def __init__(self, path: Path, *, tell: Callable[[str], None] | None = None, clock: Clock | None = None) -> None:
        """Open the file, so that an invalid path is reported before the training and not in the middle of it.

        Args:
            tell: called when lines are lost.

        Raises:
            UsageError: a folder, or a file that cannot be opened for writing.
        """
        self.path = path
        self._tell, self._clock = tell or _nobody, clock or SystemClock()
        self._early: list[tuple[str, Fields]] = []
        self._begun = False
        self._began = self._clock.monotonic()
        self._header = b""
        """First line, if it is not in the file yet. Without it, the lines that follow have no meaning."""
        self._end = 0
        """Bytes of complete lines."""
        self._torn = False
        """An incomplete line follows them."""
        self._lost, self._why = 0, ""
        self._again_at: float | None = None
        self._told = False
        check_log(path)
        if self.path.is_symlink() and self.path.is_file():
            self.path = path = path.resolve()  # a log of an earlier run is renamed, never the link, such as /dev/stdout
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = _open(path)
        except OSError as error:
            raise UsageError(
                f"the run cannot be logged to {path}", known=error.strerror or str(error), try_="a file in a folder of your own"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the log. An empty file is removed."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if not self._begun and os.fstat(self._file).st_size == 0 and self.path.is_file():
                self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file = None

    def event(self, name: str, fields: Fields) -> None:
        if self._file is None:
            return
        if name == STARTED:
            self._begin(fields)
        elif self._begun:
            self._write(self._line(name, fields))
        elif len(self._early) < _EARLY:
            # The header comes first, even if events precede it.
            self._early.append((name, dict(fields)))

    def _begin(self, fields: Fields) -> None:
        self._began = self._clock.monotonic()
        resumed = bool(fields.get("epoch") or fields.get("resumed_at_sample"))
        set_aside = None
        try:
            set_aside = self._make_room(resumed=resumed)
        except OSError as error:
            self._failed(error, lost=0)
        self._begun = True
        header = {"time": self._clock.now().isoformat(timespec="seconds"), **fields}
        self._header = self._line(STARTED, {**header, "kind": KIND, "format": FORMAT})
        self._write(b"")
        early, self._early = self._early, []
        for name, told in early:
            self.event(name, told)
        if set_aside is not None:
            self._tell(f"the log of an earlier run is now {set_aside}")

    def _make_room(self, *, resumed: bool) -> Path | None:
        """Prepare the file for the lines of this run. Return the new path of the log of an earlier run."""
        if self._file is None:
            return None
        self._end = os.fstat(self._file).st_size
        if self._end == 0:
            return None
        if resumed and header_of(self.path) is not None:
            self._torn = _last_byte(self.path) != b"\n"
            return None
        others = (self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}") for number in count(1))
        place = next(path for path in others if not path.exists())
        self.path.rename(place)
        before, self._file = self._file, _open(self.path)
        os.close(before)
        self._end = 0
        return place

    def _line(self, name: str, fields: Fields) -> bytes:
        return line_of(name, self._clock.monotonic() - self._began, fields)

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        if self._again_at is not None and self._clock.monotonic() < self._again_at:
            self._lost += 1
            return
        gap = self._line(NOTICE, {"text": f"{self._lost} events are missing here: {self._why}"}) if self._lost else b""
        whole = (b"\n" if self._torn else b"") + self._header + gap + line
        try:
            write_all(self._file, whole)
        except OSError as error:
            self._failed(error, lost=1 if line else 0)
            return
        self._end += len(whole)
        self._header, self._torn, self._lost, self._again_at = b"", False, 0, None

    def _failed(self, error: OSError, *, lost: int) -> None:
        try:
            os.ftruncate(self._file if self._file is not None else -1, self._end)
        except OSError:
            self._torn = True
        self._lost += lost
        self._why = error.strerror or str(error)
        self._again_at = self._clock.monotonic() + RETRY_S
        if not self._told:
            self._told = True
            self._tell(f"the log {self.path} cannot be written ({self._why}): training goes on, lines are lost until it can")


def check_log(path: Path, *, name: str = "--log") -> None:
    """Raises:
    UsageError: a folder, a file that is not the log of a run, or a place that cannot be written.
    """
    check_target(path, name=name, what="the log of a run", is_ours=_is_log, example="run.jsonl", special=True)


def _is_log(begin: bytes) -> bool:
    """Return True if `begin` is the beginning of an event, which may be the only content."""
    return begin.startswith((b'{"event":"', b'{"event": "'))


def header_of(path: Path) -> dict[str, object] | None:
    """Return the first line of the log of a run. None: it is not the log of a run, or cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            found: object = json.loads(file.readline(_FIRST_LINE))
    except (OSError, ValueError, RecursionError):
        return None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) and found.get("kind") == KIND else None


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), _MODE)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _nobody(text: str) -> None:
    return None
