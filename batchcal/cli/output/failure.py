"""Errors as shown to the user: what happened, what is known, what to type next; or the same as JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from typing import Final

from batchcal.core.errors import BatchcalError, Interrupted, UsageError, UserCodeError, exit_code_of
from batchcal.core.suggest import closest

FORMAT: Final = 1
_INDENT: Final = " " * 7
POSIX_ONLY: Final = frozenset({"resource", "fcntl"})
"""Modules of Python that Windows does not have."""
_VALUE: Final = re.compile(
    r"Invalid value for '(?P<flag>--[\w-]+)'[^:]*: (?:Value error, )?'(?P<value>.*)' is not one of (?P<choices>.*)"
)
_LEAST: Final = re.compile(r"Invalid value for '(?P<flag>--[\w-]+)'.*greater than or equal to (?P<number>\d+)")
_EXTRA: Final = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((?P<extra>.*)\)")
_QUOTED: Final = re.compile(r"'([^']*)'")
"""Patterns of Typer's messages: a value is not among the choices, a value is too small, there are too many arguments."""
_MEANINGS: Final = {
    "--on-stale": "fail (exit 3), default (start the command without a plan), recalibrate (calibrate first)",
}
"""Explanations of choices with unclear names, by flag."""
_NO_COMMAND: Final = "Missing argument 'CMD'"
_CODE: Final = "correct the line that the traceback ends with, then run the same command"
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Escape sequences and control characters. A user's exception may contain them, and they would reach the terminal."""


def in_three_parts(error: BatchcalError, *, colour: bool = False) -> str:
    """Return `error: ...`, ` note: ...`, `  try: ...`. Further lines of a part are indented. A signal takes one line."""
    if isinstance(error, Interrupted) and not error.known:
        return _clean(summary_of(error))
    parts = [("error", "1;31", summary_of(error)), (" note", "1;36", error.known), ("  try", "1;32", _try_of(error))]
    lines = []
    for name, code, text in parts:
        if not text:
            continue
        first_line, *further_lines = _clean(text).splitlines() or [""]
        lines.append(f"\x1b[{code}m{name}:\x1b[0m {first_line}" if colour else f"{name}: {first_line}")
        lines += [f"{_INDENT}{line}".rstrip() for line in further_lines]
    return "\n".join(lines)


def as_json(error: BatchcalError) -> str:
    """Return one document: `{"format": 1, "kind": "error", "error": {...}}`."""
    body = {
        "exit_code": exit_code_of(error),
        "name": type(error).__name__,
        "what": summary_of(error),
        "known": error.known,
        "try": _try_of(error),
    }
    return json.dumps({"format": FORMAT, "kind": "error", "error": body}, indent=2)


def _try_of(error: BatchcalError) -> str:
    """Return the proposal for the next step. It exists for failed code of the user, too."""
    return error.try_ or (_CODE if isinstance(error, UserCodeError) and "Traceback" in error.known else "")


def summary_of(error: BatchcalError) -> str:
    """Return the first part. Signals are shown by name."""
    if isinstance(error, Interrupted) and error.what == f"stopped by signal {error.signal_number}":
        return f"stopped by {signal.Signals(error.signal_number).name}"
    return error.what


def unexpected(error: BaseException, *, verbose: bool) -> BatchcalError:
    """Return an unexpected exception as a BatchcalError with exit code 1."""
    trace = "".join(traceback.format_exception(error)).strip() if verbose else ""
    summary = traceback.format_exception_only(error)[-1].strip()
    return BatchcalError(
        f"unexpected exception: {summary}",
        known=trace or "this is a bug in batchcal, or a situation that it does not handle",
        try_="" if verbose else "the same command with -v, which shows the traceback",
    )


def misused(error: Exception) -> UsageError | None:
    """Return the error for a command line that Typer rejects, or for an unsupported system. None: `error` is something else."""
    if isinstance(error, ModuleNotFoundError) and error.name in POSIX_ONLY:
        return UsageError(
            "batchcal does not run on this system",
            known=f"Python has no module {error.name!r} on this system, and batchcal needs it",
            try_="Linux or macOS; on Windows: wsl --install, which installs Linux",
        )
    format_message = getattr(error, "format_message", None)
    if not callable(format_message):
        return None
    value = _VALUE.match(str(format_message()))
    if value is not None:
        return _wrong_value(value["flag"], value["value"], tuple(_QUOTED.findall(value["choices"])))
    least = _LEAST.match(str(format_message()))
    if least is not None:
        flag, number = least["flag"], least["number"]
        return UsageError(f"{flag} must be {number} or more", try_=f"{flag} {number}, or leave it out")
    context: object = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "batchcal")
    extra = _EXTRA.match(str(format_message()))
    if extra is not None:
        return _too_many(str(path), extra["extra"])
    text = str(format_message()).strip().rstrip(".")
    if text == _NO_COMMAND:
        return UsageError(
            "there is no command to start",
            known="batchcal exec starts a command with the plan in its environment",
            try_="batchcal exec --effective-batch 512 -- python train.py",
        )
    return UsageError(text[:1].lower() + text[1:] if text else "the command line cannot be read", try_=f"{path} --help")


def _too_many(path: str, extra: str) -> UsageError:
    takes_a_spec = path.rpartition(" ")[2] in {"calibrate", "train"}
    return UsageError(
        f"{path} takes {'one SPEC' if takes_a_spec else 'fewer arguments'}; unexpected: {extra}",
        known="each task has its own calibration" if takes_a_spec else "",
        try_=f"{path} {extra.split(maxsplit=1)[0]}    as a separate command" if takes_a_spec else f"{path} --help",
    )


def _wrong_value(flag: str, value: str, choices: tuple[str, ...]) -> UsageError:
    close = closest(value, choices)
    return UsageError(
        f"{flag} {value!r} is not valid" + (f" (did you mean {close}?)" if close else ""),
        known=f"valid values: {_MEANINGS.get(flag) or ', '.join(choices)}",
        try_=f"{flag} {close}" if close else " or ".join(f"{flag} {choice}" for choice in choices),
    )


def wants_colour() -> bool:
    """True if stderr is a terminal and NO_COLOR is not set."""
    return not os.environ.get("NO_COLOR") and sys.stderr.isatty()


def _clean(text: str) -> str:
    return _CONTROL.sub("", text.replace("\r\n", "\n"))
