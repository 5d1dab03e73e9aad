"""Errors of the user's code as without batchcal: the user's own traceback, without frames of batchcal above it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from batchcal.core.errors import UserCodeError
from batchcal.guard.children.report import COLLATE, STACKING, headline, is_ours, shorten

_IMPORT: Final = f"{Path(traceback.__file__).parent / 'importlib'}{os.sep}"

_PARSERS: Final = frozenset({"argparse", "click", "typer", "docopt", "absl", "fire", "tyro", "simple_parsing"})
"""Packages that end the program where they cannot read the command line."""


def blame(error: BaseException, doing: str, *, try_: str) -> UserCodeError:
    """The error to raise, from `error`, where the user's code failed while it was `doing` something.

    Args:
        doing: `importing train.py`.
        try_: what shows the same without batchcal.
    """
    shorten(error)
    if isinstance(error, SystemExit):
        return _exited(error, doing)
    problem = f"{doing} raised {headline(error)}"
    if STACKING in problem:
        try_ = COLLATE
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        try_ = f"install {package} where batchcal is installed, or start batchcal in the folder that contains it"
    return UserCodeError(problem, known=user_traceback(error), try_=try_)


def _exited(error: SystemExit, doing: str) -> UserCodeError:
    """A parser of arguments that refuses an empty command line, or a script that ends."""
    refusal = _refusal_of_parser(error)
    if refusal:
        return UserCodeError(
            f"{doing} ended in its argument parser, {refusal}",
            known=f"sys.argv is {sys.argv}, without arguments, as with `python {sys.argv[0]}`\n{user_traceback(error)}",
            try_="a default value for the argument; other values can come from [task.args] of a config, as arguments of the "
            "function, or from environment variables",
        )
    return UserCodeError(
        f"{doing} called sys.exit({error.code!r})",
        known=user_traceback(error),
        try_='move the lines that run and end the program below `if __name__ == "__main__":`',
    )


def _refusal_of_parser(error: SystemExit) -> str:
    """The parser that ended the program, with the message of argparse. Empty: it was not a parser."""
    if error.code in (None, 0):
        return ""
    parser = _parser_of(type(error).__module__)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == argparse.__file__ and frame.f_code.co_name == "error":
            return f"argparse: {frame.f_locals.get('message', '')}"
        parser = parser or _parser_of(str(frame.f_globals.get("__name__")))
    return parser


def _parser_of(module: str) -> str:
    package = module.partition(".")[0]
    return package if package in _PARSERS else ""


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` and of its causes, from the first frame of user code on."""
    report = traceback.TracebackException.from_exception(error)
    visited: set[int] = set()
    pending = [report]
    while pending:
        current = pending.pop()
        if id(current) in visited:
            continue
        visited.add(id(current))
        first = next((at for at, frame in enumerate(current.stack) if not _machinery(frame.filename)), len(current.stack))
        current.stack = traceback.StackSummary.from_list(current.stack[first:])
        pending += [cause for cause in (current.__cause__, current.__context__) if cause is not None]
    return "".join(report.format()).strip()


def in_user_code(trace: TracebackType | None) -> bool:
    """True if user code is in the traceback of the error."""
    return any(not _machinery(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(trace))


def _machinery(filename: str) -> bool:
    """Ours or Python's import system; the examples are a user's code to us."""
    if filename.startswith(("<frozen importlib", _IMPORT)):
        return True
    return is_ours(filename)
