"""`(did you mean throughput?)`, for names and for values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

_ENOUGH: Final = 0.5
"""Of difflib's similarity: `yml` finds nothing in `table, json, sh, dotenv`, `cdua` finds `cuda`, `jemaloc` finds `jemalloc`."""


def closest(value: str, choices: Iterable[str]) -> str | None:
    """The choice that was probably meant; None: none is like `value`."""
    known = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.strip().lower(), known, n=1, cutoff=_ENOUGH)
    return known[close[0]] if close else None


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """` (did you mean throughput?)`, or nothing."""
    close = closest(value, choices)
    return f" (did you mean {close}?)" if close else ""
