"""Journal of a running calibration. Each probe is on disk before the next begins, so that a kill loses one probe.

JSON lines: a header with the fingerprint, then one measurement or settled race of allocator policies per line. Each line has a
check over its entry and the number of the journal. With a key the check is a MAC, because resumed entries are signed later.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from pydantic import AwareDatetime, ValidationError

from batchcal.calibration.freshness import check_age, differs
from batchcal.calibration.keys import Key
from batchcal.calibration.records.speed import RACED_POLICIES, RacedPolicies
from batchcal.calibration.schema import Fingerprint, Measurement, Options
from batchcal.calibration.store import make_folder, not_saved
from batchcal.core.canonical import JSON, BadJson, dumps_line, loads
from batchcal.core.errors import NotSaved
from batchcal.core.files import FileRefused, read_guarded, why_not_written, write_all, write_atomically
from batchcal.core.values import Record

# Format history
# 1 - (0.1) first version
FORMAT: Final = 1
MAX_BYTES: Final = 16 * 1024 * 1024
"""A probe takes about 1 KB; a day of probes is less than this."""
_MODE: Final = 0o644
_CHECK_DIGITS: Final = 16
"""64 bits: an accidental change passes the check once in 10^19 cases."""
Entry = Measurement | RacedPolicies


class Header(Record):
    kind: Literal["journal"] = "journal"
    format: int = FORMAT
    number: str
    """Random for each file, so that a line of another journal fails the check."""
    started_at: AwareDatetime
    fingerprint: Fingerprint
    options: Options


class Past(NamedTuple):
    """Usable content of a journal."""

    measurements: tuple[Measurement, ...] = ()
    races: tuple[RacedPolicies, ...] = ()
    started_at: datetime | None = None
    """Earliest time at which the oldest of them may have been measured. None: nothing is used."""
    ignored: str = ""
    """Reason why an existing journal is not used."""


def read(path: Path, fingerprint: Fingerprint, *, at: datetime, key: Key | None = None) -> Past:
    """Return the measurements of an interrupted calibration with this fingerprint, in order. Never raises for file contents.

    Lines that fail the check are left out (the last line may be incomplete). A journal is ignored completely if its machine,
    task, options or format differ, or if it is older than a calibration may be.
    """
    try:
        lines = read_guarded(path, max_bytes=MAX_BYTES).data.split(b"\n")[:-1]  # a line without a newline is incomplete
    except FileRefused as refused:
        return Past(ignored="" if refused.reason == "missing" else refused.detail)
    header = _header(lines[0], key) if lines else None
    if header is None:
        return Past(ignored="the header of the journal cannot be read")
    other = differs(header.fingerprint, fingerprint)
    if other is not None:
        return Past(ignored=f"the journal belongs to another calibration ({other})")
    late = check_age(header.started_at, at=at)
    if late is not None:
        return Past(ignored=f"the journal is too old or too new ({late})")
    entries = tuple(_entries(lines[1:], header.number, key))
    return Past(
        measurements=tuple(_in_order(entries)),
        races=tuple(entry for entry in entries if isinstance(entry, RacedPolicies)),
        started_at=header.started_at,
    )


class Journal:
    """An open journal. `append` returns when the measurement is on disk."""

    def __init__(self, path: Path, descriptor: int, number: str, past: Past, key: Key | None) -> None:
        self.path = path
        self.past = past
        """Content that was taken over from an interrupted calibration."""
        self._descriptor: int | None = descriptor
        self._number = number
        self._key = key

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        fingerprint: Fingerprint,
        options: Options,
        at: datetime,
        key: Key | None = None,
        restart: bool = False,
    ) -> Journal:
        """Begin a journal at `path` with the content from an interrupted calibration (`restart`: without it).

        Raises:
            NotSaved: the journal cannot be written.
        """
        past = Past() if restart else read(path, fingerprint, at=at, key=key)
        # The content keeps its age. Otherwise a calibration that is killed every day would never expire.
        header = Header(number=secrets.token_hex(8), started_at=past.started_at or at, fingerprint=fingerprint, options=options)
        lines = [_line(header.model_dump(mode="json"), "", key)]
        lines += [_line(old.model_dump(mode="json"), header.number, key) for old in (*past.races, *past.measurements)]
        try:
            make_folder(path)
            write_atomically(path, b"".join(lines), mode=_MODE)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise not_saved(path, why_not_written(error)) from error
        return cls(path, descriptor, header.number, past, key)

    def append(self, entry: Entry) -> None:
        """Write `entry` and make it durable.

        Raises:
            NotSaved: it could not be written. The lines before it are intact.
            ValueError: the journal is closed.
        """
        if self._descriptor is None:
            raise ValueError("the journal is closed")
        line = _line(entry.model_dump(mode="json"), self._number, self._key)
        end = os.fstat(self._descriptor).st_size
        try:
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # a partial line would damage the next one
                os.ftruncate(self._descriptor, end)
            raise not_saved(self.path, why_not_written(error)) from error

    def remove(self) -> None:
        """Delete the journal. Call it when the calibration is complete and saved."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Close the file and keep it for a later resume."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _header(line: bytes, key: Key | None) -> Header | None:
    entry = _entry(line, "", key)
    if entry is None or entry.get("kind") != "journal" or entry.get("format") != FORMAT:
        return None
    try:
        return Header.model_validate_json(dumps_line(entry), strict=True)
    except ValidationError:
        return None


def _entries(lines: list[bytes], number: str, key: Key | None) -> Iterator[Entry]:
    for line in lines:
        entry = _entry(line, number, key)
        if entry is None:
            continue
        model = RacedPolicies if entry.get("kind") == RACED_POLICIES else Measurement
        with contextlib.suppress(ValidationError):
            yield model.model_validate_json(dumps_line(entry), strict=True)


def _in_order(entries: Iterable[Entry]) -> Iterator[Measurement]:
    last = 0
    for entry in entries:
        # An earlier measurement has this number already. A second one would make `measured_by` ambiguous.
        if isinstance(entry, Measurement) and entry.sequence > last:
            last = entry.sequence
            yield entry


def _line(entry: dict[str, JSON], number: str, key: Key | None) -> bytes:
    return dumps_line({"check": _check(dumps_line(entry), number, key), "entry": entry}) + b"\n"


def _entry(line: bytes, number: str, key: Key | None) -> dict[str, JSON] | None:
    try:
        document = loads(line)
    except BadJson:
        return None
    if not isinstance(document, dict):
        return None
    entry, check = document.get("entry"), document.get("check")
    if not isinstance(entry, dict) or not isinstance(check, str):
        return None
    expected = _check(dumps_line(entry), number, key)
    return entry if hmac.compare_digest(check.encode(), expected.encode()) else None


def _check(entry: bytes, number: str, key: Key | None) -> str:
    data = number.encode() + b"\n" + entry
    digest = hashlib.sha256(data).hexdigest() if key is None else key.mac("journal", data)
    return digest[:_CHECK_DIGITS]


def journal_writer(journal: Journal | None, notices: list[str]) -> Callable[[Entry], None]:
    """Return a function that appends to the journal. A full disk costs the journal, not the calibration, and adds a notice."""

    def write(entry: Entry) -> None:
        if journal is None:
            return
        try:
            journal.append(entry)
        except NotSaved as error:
            notices.append(f"the journal could not be written: {error.known or error.what}")

    return write
