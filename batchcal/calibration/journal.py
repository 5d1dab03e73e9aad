"""The journal of a calibration that runs: each probe is on disk before the next begins, so that a kill costs one probe.

JSON lines: a header with the fingerprint, then a measurement or a settled race of allocator policies a line, each with a check
over it and the journal's own number. With a key the check is a MAC, since what is resumed ends up under a signature.
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
from batchcal.calibration.schema import Fingerprint, Measurement, Options
from batchcal.calibration.speed import RACED_POLICIES, RacedPolicies
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
"""64 bits: an accident passes once in 10^19."""
Kept = Measurement | RacedPolicies


class Header(Record):
    kind: Literal["journal"] = "journal"
    format: int = FORMAT
    number: str
    """Drawn anew for each file, so that a line of another journal does not check."""
    started_at: AwareDatetime
    fingerprint: Fingerprint
    options: Options


class Past(NamedTuple):
    """What a journal holds that may be used."""

    measurements: tuple[Measurement, ...] = ()
    races: tuple[RacedPolicies, ...] = ()
    started_at: datetime | None = None
    """When the oldest of them may have been measured. None: nothing is used."""
    ignored: str = ""
    """Why a journal that is there is not used."""


def read(path: Path, fingerprint: Fingerprint, *, at: datetime, key: Key | None = None) -> Past:
    """The measurements of an interrupted calibration with this fingerprint, in order. Never raises for what is on disk.

    Lines that do not check are left out (the last may be torn). A journal of another machine, task or options, older than a
    calibration may be, or of another format is ignored as a whole.
    """
    try:
        lines = read_guarded(path, max_bytes=MAX_BYTES).data.split(b"\n")[:-1]  # what has no newline is torn
    except FileRefused as refused:
        return Past(ignored="" if refused.reason == "missing" else refused.detail)
    header = _header(lines[0], key) if lines else None
    if header is None:
        return Past(ignored="the journal has no header that we can read")
    other = differs(header.fingerprint, fingerprint)
    if other is not None:
        return Past(ignored=f"the journal is of another calibration ({other})")
    late = check_age(header.started_at, at=at)
    if late is not None:
        return Past(ignored=f"the journal is too old or too new ({late})")
    kept = tuple(_kept(lines[1:], header.number, key))
    return Past(
        measurements=tuple(_in_order(kept)),
        races=tuple(one for one in kept if isinstance(one, RacedPolicies)),
        started_at=header.started_at,
    )


class Journal:
    """An open journal. `append` returns when the measurement is on disk."""

    def __init__(self, path: Path, descriptor: int, number: str, past: Past, key: Key | None) -> None:
        self.path = path
        self.past = past
        """What was taken over from an interrupted calibration."""
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
        anew: bool = False,
    ) -> Journal:
        """Begin a journal at `path`, with what an interrupted calibration left there (`anew`: without).

        Raises:
            NotSaved: it cannot be written.
        """
        past = Past() if anew else read(path, fingerprint, at=at, key=key)
        # What is taken over keeps its age: or a calibration killed every day would never expire.
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

    def append(self, kept: Kept) -> None:
        """Write it and make it durable.

        Raises:
            NotSaved: it could not be; the lines before it are whole.
            ValueError: the journal was closed.
        """
        if self._descriptor is None:
            raise ValueError("the journal is closed")
        line = _line(kept.model_dump(mode="json"), self._number, self._key)
        end = os.fstat(self._descriptor).st_size
        try:
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # half a line would spoil the next
                os.ftruncate(self._descriptor, end)
            raise not_saved(self.path, why_not_written(error)) from error

    def remove(self) -> None:
        """The calibration is complete and saved: the journal has done its work."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Leave it for who resumes."""
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


def _kept(lines: list[bytes], number: str, key: Key | None) -> Iterator[Kept]:
    for line in lines:
        entry = _entry(line, number, key)
        if entry is None:
            continue
        model = RacedPolicies if entry.get("kind") == RACED_POLICIES else Measurement
        with contextlib.suppress(ValidationError):
            yield model.model_validate_json(dumps_line(entry), strict=True)


def _in_order(kept: Iterable[Kept]) -> Iterator[Measurement]:
    last = 0
    for one in kept:
        # A number that came before names a measurement already; a second one would make `measured_by` ambiguous.
        if isinstance(one, Measurement) and one.sequence > last:
            last = one.sequence
            yield one


def _line(entry: dict[str, JSON], number: str, key: Key | None) -> bytes:
    return dumps_line({"check": _check(dumps_line(entry), number, key), "entry": entry}) + b"\n"


def _entry(line: bytes, number: str, key: Key | None) -> dict[str, JSON] | None:
    try:
        found = loads(line)
    except BadJson:
        return None
    if not isinstance(found, dict):
        return None
    entry, check = found.get("entry"), found.get("check")
    if not isinstance(entry, dict) or not isinstance(check, str):
        return None
    right = _check(dumps_line(entry), number, key)
    return entry if hmac.compare_digest(check.encode(), right.encode()) else None


def _check(entry: bytes, number: str, key: Key | None) -> str:
    data = number.encode() + b"\n" + entry
    whole = hashlib.sha256(data).hexdigest() if key is None else key.mac("journal", data)
    return whole[:_CHECK_DIGITS]


def keeper(journal: Journal | None, notices: list[str]) -> Callable[[Kept], None]:
    """What appends to the journal; a disk that fills up meanwhile costs the journal, not the calibration, and is noted."""

    def keep(kept: Kept) -> None:
        if journal is None:
            return
        try:
            journal.append(kept)
        except NotSaved as error:
            notices.append(f"the journal could not be written: {error.known or error.what}")

    return keep
