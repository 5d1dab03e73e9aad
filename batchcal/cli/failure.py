"""An error as its user meets it: what happened, what we know, what to type next; or the same as JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from typing import Final

from batchcal.core.errors import BatchcalError, Interrupted, UsageError, exit_code_of

FORMAT: Final = 1
_INDENT: Final = " " * 7
POSIX_ONLY: Final = frozenset({"resource", "fcntl"})
"""Modules of Python that Windows does not have."""
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Escape sequences and control characters: a user's exception may hold any, and they would reach the terminal."""


def in_three_parts(error: BatchcalError, *, colour: bool = False) -> str:
    """`error: ...`, ` note: ...`, `  try: ...`; further lines of a part stand under its first. A signal is told in one line."""
    if isinstance(error, Interrupted) and not error.known:
        return _clean(what_of(error))
    parts = [("error", "1;31", what_of(error)), (" note", "1;36", error.known), ("  try", "1;32", error.try_)]
    lines = []
    for name, code, text in parts:
        if not text:
            continue
        first, *others = _clean(text).splitlines() or [""]
        lines.append(f"\x1b[{code}m{name}:\x1b[0m {first}" if colour else f"{name}: {first}")
        lines += [f"{_INDENT}{other}".rstrip() for other in others]
    return "\n".join(lines)


def as_json(error: BatchcalError) -> str:
    """One document: `{"format": 1, "kind": "error", "error": {...}}`."""
    body = {
        "exit_code": exit_code_of(error),
        "name": type(error).__name__,
        "what": what_of(error),
        "known": error.known,
        "try": error.try_,
    }
    return json.dumps({"format": FORMAT, "kind": "error", "error": body}, indent=2)


def what_of(error: BatchcalError) -> str:
    """The first part. A signal has its name."""
    if isinstance(error, Interrupted) and error.what == f"stopped by signal {error.signal_number}":
        return f"stopped by {signal.Signals(error.signal_number).name}"
    return error.what


def unexpected(error: BaseException, *, verbose: bool) -> BatchcalError:
    """Something that we did not foresee, as an error of ours with exit code 1."""
    told = "".join(traceback.format_exception(error)).strip() if verbose else ""
    summary = traceback.format_exception_only(error)[-1].strip()
    return BatchcalError(
        f"unexpected: {summary}",
        known=told or "this is a mistake in batchcal, or something it was not prepared for",
        try_="" if verbose else "the same command with -v shows the traceback",
    )


def misused(error: Exception) -> UsageError | None:
    """A mistake in the command line that Typer found, or a system that we do not run on. None: `error` is something else."""
    if isinstance(error, ModuleNotFoundError) and error.name in POSIX_ONLY:
        return UsageError(
            "batchcal does not run on this system",
            known=f"it has no {error.name!r}: no limits on processes, no process groups, no fence",
            try_="Linux or macOS; on Windows a Linux of its own: wsl --install",
        )
    say = getattr(error, "format_message", None)
    if not callable(say):
        return None
    context: object = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "batchcal")
    text = str(say()).strip().rstrip(".")
    return UsageError(text[:1].lower() + text[1:] if text else "the command line cannot be read", try_=f"{path} --help")


def wants_colour() -> bool:
    """stderr is a terminal and NO_COLOR is not set."""
    return not os.environ.get("NO_COLOR") and sys.stderr.isatty()


def _clean(text: str) -> str:
    return _CONTROL.sub("", text.replace("\r\n", "\n"))
