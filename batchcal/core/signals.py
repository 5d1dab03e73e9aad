"""SIGINT and SIGTERM as an error of ours, raised where the program is; a second one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

from batchcal.core.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def signal_name(number: int) -> str:
    """`SIGKILL`; the number where the system has no such signal."""
    return signal.Signals(number).name if number in signal.valid_signals() else str(number)


@contextlib.contextmanager
def raised_as_interrupted() -> Iterator[None]:
    """While entered. Children are not left behind by the second signal: they die with us.

    A signal that was ignored when we began (nohup, a background job of sh) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was not set from Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
