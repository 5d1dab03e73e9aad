"""Replace this process by another program: the same id, the same parent, the same open streams."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from batchcal.core.errors import UsageError

IGNORED_BY_PYTHON: Final = ("SIGPIPE", "SIGXFSZ")
"""Signals that Python ignores for itself. A program that is started by exec inherits this: `yes | head` would never end."""


def replace_process(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Start `command` in place of this process, looked up on the PATH of `environment`.

    Signals reach it as they reached this process, also as PID 1 of a container. Signals that were ignored at our start stay so.

    Raises:
        UsageError: there is no such program, or it cannot be started.
    """
    check_startable(command, environment)
    # Buffered output would be lost.
    sys.stdout.flush()
    sys.stderr.flush()
    restored = [getattr(signal, name) for name in IGNORED_BY_PYTHON if hasattr(signal, name)]
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in restored}
    try:
        os.execvpe(command[0], list(command), dict(environment))
    except (OSError, ValueError) as error:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _not_started(command[0], reason, environment) from None


def check_startable(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raises:
    UsageError: there is no such program on the PATH of `environment`, or it may not be executed.
    """
    program = command[0]
    if os.sep not in program:
        if shutil.which(program, path=environment.get("PATH", os.defpath)) is None:
            raise _not_started(program, "no such file or directory", environment)
    elif not Path(program).exists():
        raise _not_started(program, "no such file or directory", environment)
    elif Path(program).is_dir() or not os.access(program, os.X_OK):
        raise _not_started(program, "it is a folder" if Path(program).is_dir() else "permission denied", environment)


def _not_started(program: str, reason: str, environment: Mapping[str, str]) -> UsageError:
    by_path = os.sep in program
    return UsageError(
        f"{program!r} cannot be started: {reason.lower()}",
        known="" if by_path else f"no folder of PATH contains it: {environment.get('PATH', '')}",
        try_=f"ls -l {program}" if by_path else "the correct name, or the full path of the program",
    )
