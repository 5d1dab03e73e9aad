"""SIGINT and SIGTERM raise `Interrupted` at the current line of the program. A second signal ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

from batchcal.core.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
REPEAT_S: Final = 1.0
"""A SIGTERM that follows another one within this time is the same request: `timeout` sends one to the process and one to its
group, `scancel` one to each process of the job and one through `srun`. Both pairs arrive within milliseconds."""


def signal_name(number: int) -> str:
    """Name such as `SIGKILL`, or the number if the system has no such signal."""
    return signal.Signals(number).name if number in signal.valid_signals() else str(number)


class Repeats:
    """Distinguishes a second request to stop from a repetition of the first."""

    def __init__(self) -> None:
        self._at: float | None = None

    def repeats(self, number: int) -> bool:
        """Return True if signal `number`, which arrives now, repeats the first SIGTERM."""
        now = time.monotonic()
        if self._at is not None:
            return number == signal.SIGTERM and now - self._at < REPEAT_S
        if number == signal.SIGTERM:
            self._at = now
        return False


@contextlib.contextmanager
def raised_as_interrupted() -> Iterator[None]:
    """Raise signals as `Interrupted` inside the context. A second signal leaves no children behind: they die with this process.

    A signal that was ignored at the start (nohup, a background job of sh) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    repeats, stopped = Repeats(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if repeats.repeats(number):
            return
        if stopped:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        stopped = True
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: the handler was not set from Python and cannot be restored here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
