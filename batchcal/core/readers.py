"""Readers of settings: text -> value. Each takes the text and the setting's name for messages, and raises UsageError."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeVar

from batchcal.core.errors import UsageError
from batchcal.core.suggest import closest
from batchcal.core.units import parse_duration, parse_fraction, parse_size

Word = TypeVar("Word", bound=str)
LARGEST_BATCH: Final = 2**31
"""Largest batch size that fits in the files."""
OFF: Final = "off"
"""Value of `--no-checkpoint` and `checkpoint = false`."""


def fraction(suggest: str) -> Callable[[str, str], float]:
    """A reader of `15%` or `0.15`, from 0 to below 1; its errors propose `suggest`."""
    return lambda text, name: parse_fraction(text, name=name, suggest=suggest)


def size(text: str, name: str) -> int:
    """`2GiB`, in bytes."""
    return parse_size(text, name=name)


def duration(text: str, name: str) -> float:
    """`60s`, `5m` or a number of seconds, in seconds."""
    return parse_duration(text, name=name)


def line(text: str, name: str) -> str:
    """Any text that is not empty."""
    if not text.strip():
        raise UsageError(f"{name} is empty", try_=f"--{name} VALUE, or leave it out")
    return text.strip()


def line_or_off(text: str, name: str) -> str:
    """Any text; `OFF` for `off`, `false` and `no`."""
    return OFF if text.strip().lower() in (OFF, "false", "no") else line(text, name)


def integer(text: str, name: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} {text!r} is not a whole number", try_=f"--{name} {_rounded(text)}") from None


def _rounded(text: str) -> int:
    """1000 for `1e3`; 8 for text that is not a number."""
    try:
        return max(1, round(float(text)))
    except (ValueError, OverflowError):
        return 8


def integer_from(least: int, most: int, *, suggest: int) -> Callable[[str, str], int]:
    """A reader of whole numbers from `least` to `most`; its errors propose `suggest`."""

    def read(text: str, name: str) -> int:
        value = integer(text, name)
        if value < least:
            wrong = "negative" if least == 0 else f"below {least}"
            raise UsageError(f"{name} {value} is {wrong}", try_=f"--{name} {suggest}")
        if value > most:
            raise UsageError(f"{name} {value} is above the maximum, {most}", try_=f"--{name} {suggest}")
        return value

    return read


count: Final = integer_from(1, 2**63 - 1, suggest=8)
"""A whole number of 1 or more that fits 64 bits."""
batch_size: Final = integer_from(1, LARGEST_BATCH, suggest=8)
"""Samples of a batch."""
count_from_zero: Final = integer_from(0, 2**63 - 1, suggest=0)
"""A whole number of 0 or more that fits 64 bits."""


def number(text: str, name: str) -> float:
    """A finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{name} {text!r} is not a number of 0 or more", try_=f"--{name} 0.1")
    return value


def positive_number(text: str, name: str) -> float:
    """A number above 0, infinity included."""
    value = math.inf if text.strip().lower() in ("inf", "infinity") else number(text, name)
    if not value:
        raise UsageError(f"{name} {text} is not above 0", try_=f"--{name} 1.0")
    return value


def switch(text: str, name: str) -> bool:
    """true or false, 1 or 0, yes or no."""
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.strip().lower())
    if value is None:
        raise UsageError(f"{name} {text!r} is neither true nor false", try_=f"--{name} true")
    return value


def one_of(*words: Word, meaning: str = "") -> Callable[[str, str], Word]:
    """A reader of one of `words`. `meaning` explains them in the error instead of the plain list."""

    def read(text: str, name: str) -> Word:
        for word in words:
            if word == text.strip():
                return word
        close = closest(text, words)
        raise UsageError(
            f"{name} {text!r} is not valid" + (f" (did you mean {close}?)" if close else ""),
            known=f"valid values: {meaning or ', '.join(words)}",
            try_=f"--{name} {close}" if close else " or ".join(f"--{name} {word}" for word in words),
        )

    return read
