"""Suggestions such as `(did you mean throughput?)`, for names and for values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

_ENOUGH: Final = 0.5
"""Minimum similarity of difflib: no match for `yml` in `table, json, sh, dotenv`, `cuda` for `cdua`, `jemalloc` for `jemaloc`."""


def closest(value: str, choices: Iterable[str]) -> str | None:
    """Return the choice that was probably meant. None: no choice is similar to `value`."""
    originals = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.strip().lower(), originals, n=1, cutoff=_ENOUGH)
    return originals[close[0]] if close else None


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """` (did you mean throughput?)`, or an empty text."""
    close = closest(value, choices)
    return f" (did you mean {close}?)" if close else ""
