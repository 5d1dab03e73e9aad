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

    def __init__(self, path: Path, *, report: Callable[[str], None] | None = None, clock: Clock | None = None) -> None:
        """Open the file, so that an invalid path is reported before the training and not in the middle of it.

        Args:
            report: called when lines are lost.

        Raises:
            UsageError: a folder, or a file that cannot be opened for writing.
        """
        self.path = path
        self._report, self._clock = report or _ignore, clock or SystemClock()
        self._early: list[tuple[str, Fields]] = []
        self._started = False
        self._start_s = self._clock.monotonic()
        self._header = b""
        """First line, if it is not in the file yet. Without it, the lines that follow have no meaning."""
        self._end = 0
        """Bytes of complete lines."""
        self._torn = False
        """An incomplete line follows them."""
        self._lost, self._reason = 0, ""
        self._retry_at: float | None = None
        self._reported = False
        check_log(path)
        if self.path.is_symlink() and self.path.is_file():
            self.path = path = path.resolve()  # a log of an earlier run is renamed, never the link, such as /dev/stdout
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = _open(path)
        except OSError as error:
            raise UsageError(
                f"the log of the run cannot be written to {path}",
                known=error.strerror or str(error),
                try_="a file in a folder that you can write to",
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
            if not self._started and os.fstat(self._file).st_size == 0 and self.path.is_file():
                self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._file = None

    def event(self, name: str, fields: Fields) -> None:
        if self._file is None:
            return
        if name == STARTED:
            self._begin(fields)
        elif self._started:
            self._write(self._line(name, fields))
        elif len(self._early) < _EARLY:
            # The header comes first, even if events precede it.
            self._early.append((name, dict(fields)))

    def _begin(self, fields: Fields) -> None:
        self._start_s = self._clock.monotonic()
        resumed = bool(fields.get("epoch") or fields.get("resumed_at_sample"))
        renamed = None
        try:
            renamed = self._prepare_file(resumed=resumed)
        except OSError as error:
            self._failed(error, lost=0)
        self._started = True
        header = {"time": self._clock.now().isoformat(timespec="seconds"), **fields}
        self._header = self._line(STARTED, {**header, "kind": KIND, "format": FORMAT})
        self._write(b"")
        early, self._early = self._early, []
        for name, early_fields in early:
            self.event(name, early_fields)
        if renamed is not None:
            self._report(f"the log of an earlier run was renamed to {renamed}")

    def _prepare_file(self, *, resumed: bool) -> Path | None:
        """Prepare the file for the lines of this run. Return the new path of the log of an earlier run."""
        if self._file is None:
            return None
        self._end = os.fstat(self._file).st_size
        if self._end == 0:
            return None
        if resumed and header_of(self.path) is not None:
            self._torn = _last_byte(self.path) != b"\n"
            return None
        candidates = (self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}") for number in count(1))
        new_path = next(path for path in candidates if not path.exists())
        self.path.rename(new_path)
        old_file, self._file = self._file, _open(self.path)
        os.close(old_file)
        self._end = 0
        return new_path

    def _line(self, name: str, fields: Fields) -> bytes:
        return line_of(name, self._clock.monotonic() - self._start_s, fields)

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        if self._retry_at is not None and self._clock.monotonic() < self._retry_at:
            self._lost += 1
            return
        gap = self._line(NOTICE, {"text": f"{self._lost} events are missing here: {self._reason}"}) if self._lost else b""
        data = (b"\n" if self._torn else b"") + self._header + gap + line
        try:
            write_all(self._file, data)
        except OSError as error:
            self._failed(error, lost=1 if line else 0)
            return
        self._end += len(data)
        self._header, self._torn, self._lost, self._retry_at = b"", False, 0, None

    def _failed(self, error: OSError, *, lost: int) -> None:
        try:
            os.ftruncate(self._file if self._file is not None else -1, self._end)
        except OSError:
            self._torn = True
        self._lost += lost
        self._reason = error.strerror or str(error)
        self._retry_at = self._clock.monotonic() + RETRY_S
        if not self._reported:
            self._reported = True
            self._report(
                f"the log {self.path} cannot be written ({self._reason}): training continues, and events are lost until the "
                "log can be written again"
            )


def check_log(path: Path, *, name: str = "--log") -> None:
    """Raises:
    UsageError: a folder, a file that is not the log of a run, or a place that cannot be written.
    """
    check_target(path, name=name, document="the log of a run", is_ours=_is_log, example="run.jsonl", special=True)


def _is_log(begin: bytes) -> bool:
    """Return True if `begin` is the beginning of an event, which may be the only content."""
    return begin.startswith((b'{"event":"', b'{"event": "'))


def header_of(path: Path) -> dict[str, object] | None:
    """Return the first line of the log of a run. None: it is not the log of a run, or cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            header: object = json.loads(file.readline(_FIRST_LINE))
    except (OSError, ValueError, RecursionError):
        return None
    return {str(key): value for key, value in header.items()} if isinstance(header, dict) and header.get("kind") == KIND else None


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), _MODE)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _ignore(text: str) -> None:
    return None
