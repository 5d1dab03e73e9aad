"""Bytes, seconds and cores in the notation of people. Data contains bytes and seconds; only views contain text."""

from __future__ import annotations

import re
from typing import Final

from batchcal.core.errors import UsageError

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3

_FACTORS: Final[dict[str, int]] = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1024**4,
}  # fmt: skip
_SIZE: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")
_COUNT: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKmMbBtT]?)\s*$")
_THOUSANDS: Final[dict[str, int]] = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_DURATION: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?\s*$")
_SECONDS: Final[dict[str, float]] = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str, *, name: str = "size") -> int:
    """`2GiB` -> bytes. An unambiguous unit is required: `2g` is 2 GiB in docker and 2 GB elsewhere.

    Raises:
        UsageError: no number, no unit, or an ambiguous unit.
    """
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"{name} {text!r} is not a size", try_=f"--{name} 2GiB")
    number, unit = match.groups()
    factor = _FACTORS.get(unit.upper())
    if factor is None:
        first = unit[:1].upper()
        is_short = first in {"K", "M", "G", "T"} and len(unit) == 1
        # A training rarely needs 2000 GiB: a large number without a unit means MiB, a very large one bytes.
        letter = first if first in {"K", "M", "G", "T"} else "G" if float(number) < 500 else "M" if float(number) < 10**7 else ""
        binary, decimal = (f"{number}{letter}iB", f"{number}{letter}B") if letter else (f"{number}B", "")
        reason = (
            "a size needs a unit"
            if not unit
            else f"{unit!r} is binary for some tools and decimal for others"
            if is_short
            else f"{unit!r} is not a unit of bytes"
        )
        raise UsageError(
            f"{name} {text!r} is {'ambiguous' if is_short or not unit else 'not a size'}",
            known=f"{reason}: {binary} is 1024-based, {decimal} is 1000-based" if decimal else reason,
            try_=f"--{name} {binary}, or --{name} {decimal}" if decimal else f"--{name} {binary}",
        )
    size = int(float(number) * factor)
    if size <= 0:
        raise UsageError(f"{name} {text!r} is not positive", try_=f"--{name} 2GiB")
    return size


def parse_duration(text: str, *, name: str = "time-limit") -> float:
    """`60s`, `2m`, `500ms`, `1h` or a bare number of seconds -> seconds.

    Raises:
        UsageError: it cannot be read or is not positive.
    """
    match = _DURATION.match(text)
    seconds = 0.0 if match is None else float(match.group(1)) * _SECONDS[match.group(2) or "s"]
    if seconds <= 0:
        negative = match is not None or _DURATION.match(text.strip().removeprefix("-")) is not None
        raise UsageError(f"{name} {text!r} is not {'positive' if negative else 'a duration'}", try_=f"--{name} 60s")
    return seconds


def parse_fraction(text: str, *, name: str, suggest: str = "15%") -> float:
    """`15%` or `0.15` -> 0.15.

    Raises:
        UsageError: not a number, or outside [0, 1).
    """
    body = text.strip()
    try:
        value = float(body[:-1]) / 100 if body.endswith("%") else float(body)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"{name} {text!r} is not a fraction from 0 to below 1", try_=f"--{name} {suggest}")
    return value


def parse_count(text: str, *, name: str) -> int:
    """`2M` -> 2,000,000; `20000`, `1.5B`, `3k`.

    Raises:
        UsageError: it cannot be read, or is not a whole number above 0.
    """
    match = _COUNT.match(text)
    count = 0.0 if match is None else float(match.group(1)) * _THOUSANDS[(match.group(2) or "").upper()]
    if count < 1 or count != int(count):
        raise UsageError(
            f"{name} {text!r} is not a count", known="k, M, B and T stand for 10^3, 10^6, 10^9 and 10^12", try_=f"{name} = 2M"
        )
    return int(count)


def format_bytes(count: float) -> str:
    """Binary units, three significant digits: `828 MiB`, `1.45 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1000 or unit == "GiB":
            break
        size /= 1024
    if unit == "B":
        return f"{size:.0f} B"
    digits = 0 if abs(size) >= 100 else 1 if abs(size) >= 10 else 2
    return f"{size:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """`43 ms`, `1.2 s`, `3 min 20 s`, `2 h 5 min`, `6 d 3 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    total_s = round(seconds)
    if total_s < 3600:
        return f"{total_s // 60} min {total_s % 60} s"
    if total_s < 86400:
        return f"{total_s // 3600} h {total_s % 3600 // 60} min"
    return f"{total_s // 86400} d {total_s % 86400 // 3600} h"


def count_of(number: int, noun: str) -> str:
    """`1 probe`, `2 probes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
