"""Keys that long-running commands accept on a terminal: `q` ends the command cleanly."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

STOP: Final = "q"
WAIT_S: Final = 0.2
"""Longest delay until the listener notices that it is no longer needed, seconds."""


@contextlib.contextmanager
def stopping_at_q(stop: Callable[[], None]) -> Iterator[bool]:
    """Call `stop` for each press of `q` while the context is active. Yields True if keys are read.

    Keys are not read if stdin is not a terminal, or if this process is in its background: reading would halt the process.
    """
    descriptor = _terminal()
    if descriptor is None:
        yield False
        return
    import termios
    import tty

    terminal_state = termios.tcgetattr(descriptor)
    done = threading.Event()
    thread = threading.Thread(target=_listen, args=(descriptor, done, stop), name="batchcal-keys", daemon=True)
    # Keys arrive one by one and are not echoed. Ctrl-C and Ctrl-Z keep their meaning.
    tty.setcbreak(descriptor)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, terminal_state)


def _terminal() -> int | None:
    try:
        descriptor = sys.stdin.fileno()
        return descriptor if os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp() else None
    except (AttributeError, ValueError, OSError):  # closed, replaced by something else, or not ours
        return None


def _listen(descriptor: int, done: threading.Event, stop: Callable[[], None]) -> None:
    while not done.is_set():
        try:
            ready, _, _ = select.select([descriptor], [], [], WAIT_S)
            keys = os.read(descriptor, 64) if ready else b""
        except OSError:  # the terminal went away
            return
        if ready and not keys:
            return
        for _ in range(keys.lower().count(STOP.encode())):
            stop()
