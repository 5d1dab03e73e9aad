"""Fast reader of the log of a run. It tolerates the traces of a killed process or of a later version."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from batchcal.core.errors import UsageError
from batchcal.core.units import count_of
from batchcal.train.report.events import (
    CHECKPOINT_SAVED,
    ENDED,
    EPOCH_ENDED,
    FILE_NAME,
    NOTICE,
    RECOVERED,
    RESIZED,
    STARTED,
    STEP,
    STOPPED,
)
from batchcal.train.report.jsonl import header_of
from batchcal.train.report.run import (
    MOST_S,
    Happening,
    LoggedCheckpoint,
    LoggedEnd,
    LoggedEpoch,
    LoggedNotice,
    LoggedRecovery,
    LoggedResize,
    LoggedStart,
    Run,
    Stopped,
)
from batchcal.train.report.steps import Steps, restored
from batchcal.values.training_events import FORMAT

_CHUNK: Final = 1 << 16
"""Bytes that are parsed at once. More are slower: Python's garbage collector then scans all of them."""
Fields = Mapping[str, object]

_KINDS: Final[dict[str, Callable[[object], Happening | LoggedEnd]]] = {
    STARTED: LoggedStart.model_validate,
    RECOVERED: LoggedRecovery.model_validate,
    RESIZED: LoggedResize.model_validate,
    EPOCH_ENDED: LoggedEpoch.model_validate,
    CHECKPOINT_SAVED: LoggedCheckpoint.model_validate,
    NOTICE: LoggedNotice.model_validate,
    ENDED: LoggedEnd.model_validate,
    STOPPED: Stopped.model_validate,
}


def log_in(path: Path) -> Path:
    """Return the log that `path` names: `path` itself, or `run.jsonl` in it if it is a folder."""
    return path / FILE_NAME if path.is_dir() else path


def is_run(path: Path) -> bool:
    """Return True if `path` names the log of a run, according to its first line."""
    return header_of(log_in(path)) is not None


def read_run(path: Path) -> Run:
    """Return the run whose log `path` names. A hundred thousand steps take about half a second.

    Unreadable lines are left out and counted: the last line of a killed run may be incomplete. Unknown events are skipped,
    unknown fields are kept.

    Raises:
        UsageError: there is no such file, it is not the log of a run, or it has a newer format.
    """
    log = log_in(path)
    header = header_of(log)
    if header is None:
        raise _unusable(path, log)
    version = header.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise UsageError(
            f"{log} has format {version}",
            known=f"this version of batchcal reads formats up to {FORMAT}",
            try_="pip install -U batchcal",
        )
    reader = _Reader()
    # Checked before the rest is read, with its own error message.
    try:
        LoggedStart.model_validate(restored(header))
    except ValidationError as error:
        raise UsageError(
            f"the log {log} cannot be read",
            known=f"its first line is not valid: {error.errors()[0]['msg']}",
            try_="batchcal show FILE    where FILE is another log",
        ) from None
    try:
        with log.open("rb") as file:
            while lines := file.readlines(_CHUNK):
                reader.take(lines)
        written = log.stat().st_mtime
    except OSError as error:
        raise UsageError(f"{log} cannot be read", known=error.strerror or str(error), try_="batchcal show RUN") from None
    return reader.run(log, datetime.fromtimestamp(written, UTC))


def _unusable(path: Path, log: Path) -> UsageError:
    if not log.exists():
        what = f"there is no {FILE_NAME} in {path}" if path.is_dir() else f"there is no file {path}"
        return UsageError(
            what,
            known=f"batchcal train writes {FILE_NAME} into the folder of the calibration, or to the path of --log",
            try_=f"batchcal show .batchcal    or another folder that has a {FILE_NAME}",
        )
    return UsageError(
        f"{log} is not the log of a run",
        known="the file does not begin with the first line of a log, which batchcal train writes",
        try_="batchcal show FILE    where FILE is a calibration, or a log that batchcal train wrote",
    )


class _Reader:
    """Parser of lines, in order."""

    def __init__(self) -> None:
        self._steps = Steps()
        self._rows: list[Fields] = []
        """Steps that are not yet in the columns."""
        self._last = (-1, -1, 0)
        """Last step: epoch, step within the epoch, step within the run."""
        self._started: list[LoggedStart] = []
        self._happenings: list[Happening] = []
        self._ended: LoggedEnd | Stopped | None = None
        self._at = self._wall_s = 0.0
        self._repeated = self._unreadable = 0
        self._cut_off = False

    def take(self, lines: list[bytes]) -> None:
        for fields in self._parsed(lines):
            name = fields.get("event")
            if name == STEP:
                self._rows.append(fields)
            elif isinstance(name, str) and name in _KINDS:
                self._settle()
                self._happened(name, restored(fields))
        self._settle()

    def run(self, path: Path, written_at: datetime) -> Run:
        first, *resumes = self._started
        unreadable = self._unreadable - self._cut_off
        remarks = (f"{count_of(unreadable, 'line')} could not be read",) if unreadable else ()
        return Run(
            path=path,
            written_at=written_at,
            started=first,
            resumes=tuple(resumes),
            steps=self._steps,
            happenings=tuple(happening for happening in self._happenings if happening is not first),
            ended=self._ended,
            wall_s=self._wall_s + self._at,
            repeated_steps=self._repeated,
            remarks=(*remarks, *(("the last line is incomplete",) if self._cut_off else ())),
        )

    def _parsed(self, lines: list[bytes]) -> Iterator[Fields]:
        self._cut_off = False
        try:
            # One call for all lines is four times as fast as one call per line.
            values: object = json.loads(b"[" + b",".join(lines) + b"]")
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, list) and len(values) == len(lines):
            for fields in values:
                if isinstance(fields, dict):
                    yield fields
                else:
                    self._unreadable += 1
            return
        for line in lines:
            self._cut_off = False
            try:
                fields = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError):
                fields = None
            if isinstance(fields, dict):
                yield fields
            else:
                self._unreadable += 1
                self._cut_off = not line.endswith(b"\n")

    def _settle(self) -> None:
        """Move the steps read so far into the columns, so that later happenings have their position."""
        if not self._rows:
            return
        last = self._rows[-1]
        self._last = (
            _integer(last, "epoch"),
            _integer(last, "step"),
            _integer(last, "global_step", self._last[2] + len(self._rows)),
        )
        self._at = max(self._at, _seconds(last))
        self._steps.extend(self._rows)
        self._rows = []

    def _happened(self, name: str, fields: Fields) -> None:
        position = (_integer(fields, "epoch"), _integer(fields, "step"))
        # An event of a step that has not ended belongs to the next step that ends.
        ahead = name in {RECOVERED, RESIZED} and position != self._last[:2]
        try:
            happening = _KINDS[name]({**fields, "global_step": self._last[2] + ahead})
        except ValidationError:
            self._unreadable += 1
            return
        if isinstance(happening, LoggedStart):
            self._resume(happening)
        elif isinstance(happening, LoggedEnd | Stopped):
            self._ended = happening
        self._at = max(self._at, happening.at)
        if not isinstance(happening, LoggedEnd):
            self._happenings.append(happening)

    def _resume(self, started: LoggedStart) -> None:
        self._wall_s, self._at = self._wall_s + self._at, 0.0
        self._ended = None
        epochs, samples = self._steps.column("epoch"), self._steps.column("samples_seen")
        keep = len(self._steps)
        if epochs and samples:
            while keep and (epochs[keep - 1], samples[keep - 1]) > (started.epoch, started.resumed_at_sample):
                keep -= 1
        self._repeated += len(self._steps) - keep
        self._steps.cut(keep)
        self._last = (-1, -1, int(self._steps.places[-1]) if len(self._steps) else 0)
        self._happenings = [
            happening
            for happening in self._happenings
            if not (isinstance(happening, LoggedEpoch) and happening.epoch >= started.epoch)
        ]
        self._started.append(started)


def _integer(fields: Fields, name: str, default: int = -1) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) else default


def _seconds(fields: Fields) -> float:
    at = fields.get("at")
    return at if isinstance(at, float) and 0 <= at <= MOST_S else 0.0
