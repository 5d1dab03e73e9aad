"""This process becomes another program: the same id, the same parent, the same open streams."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from batchcal.core.errors import UsageError

IGNORED_BY_PYTHON: Final = ("SIGPIPE", "SIGXFSZ")
"""Python ignores them for itself, and a program that is exec'd inherits that: `yes | head` would never end."""


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Starts `command` in the place of this process, looked up on the PATH of `environment`.

    Signals reach it as they reached us, PID 1 of a container included; what was ignored when we began stays ignored.

    Raises:
        UsageError: there is no such program, or it cannot be started.
    """
    # What is buffered would be lost.
    sys.stdout.flush()
    sys.stderr.flush()
    restored = [getattr(signal, name) for name in IGNORED_BY_PYTHON if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in restored}
    try:
        os.execvpe(command[0], list(command), dict(environment))
    except (OSError, ValueError) as error:
        for number, handler in before.items():
            signal.signal(number, handler)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"{command[0]!r} cannot be started: {reason.lower()}",
            known=f"it was looked for on the PATH {environment.get('PATH', '')}" if os.sep not in command[0] else "",
            try_=f"sh -c 'command -v {command[0]}'" if os.sep not in command[0] else f"ls -l {command[0]}",
        ) from None
