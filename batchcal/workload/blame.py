"""Errors of the user's code as he would see them without batchcal: his own traceback, without our frames above it."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from batchcal.core.errors import UserCodeError
from batchcal.guard.report import is_ours

_IMPORT: Final = f"{Path(traceback.__file__).parent / 'importlib'}{os.sep}"


def blame(error: BaseException, doing: str, *, try_: str) -> UserCodeError:
    """The error to raise, from `error`, where the user's code failed while it was `doing` something.

    Args:
        doing: `importing train.py`.
        try_: what shows the same without batchcal.
    """
    if isinstance(error, SystemExit):
        what = f"{doing} called sys.exit({error.code!r})"
    else:
        text = _text(error).strip()
        what = f"{doing} raised {type(error).__name__}" + (f": {text.splitlines()[0]}" if text else "")
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        try_ = f"install {error.name.partition('.')[0]} where batchcal runs, or start batchcal in the folder that holds it"
    return UserCodeError(what, known=user_traceback(error), try_=try_)


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` and of what it came from, from the first frame of the user's on."""
    told = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    waiting = [told]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        first = next((at for at, frame in enumerate(one.stack) if not _machinery(frame.filename)), len(one.stack))
        one.stack = traceback.StackSummary.from_list(one.stack[first:])
        waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
    return "".join(told.format()).strip()


def in_user_code(trace: TracebackType | None) -> bool:
    """Whether any of the user's code ran on the way to the error."""
    return any(not _machinery(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(trace))


def _machinery(filename: str) -> bool:
    """Ours or Python's import system; the examples are a user's code to us."""
    if filename.startswith(("<frozen importlib", _IMPORT)):
        return True
    return is_ours(filename)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may do anything
        return ""
