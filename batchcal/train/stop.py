"""SIGINT and SIGTERM as a wish that the loop grants when its state is whole."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Final

from batchcal.core.signals import Repeats

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_S: Final = 0.01


class StopWish:
    """While entered, the first signal is noted; a second one does what it would have done without us.

    Outside of the main thread, where Python takes no handlers, signals keep their meaning and nothing is ever noted.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """Its number, once there was one."""
        self.asked: str | None = None
        """Why the training is to end after the step that is going on, where that was asked for otherwise."""
        self._before: dict[int, signal._HANDLER] = {}
        self._repeats = Repeats()

    @property
    def granted(self) -> bool:
        """Whether to stop at the next moment when that is possible."""
        return self.signal is not None or self.asked is not None

    def ask(self, why: str) -> None:
        """Ends the training after the step that is going on, in order: with a checkpoint and a result."""
        self.asked = why

    def await_signal(self, limit_s: float) -> bool:
        """Whether a signal arrived, now or within `limit_s`."""
        until = time.monotonic() + limit_s
        while self.signal is None and self._before and time.monotonic() < until:
            time.sleep(_LOOK_S)
        return self.signal is not None

    def __enter__(self) -> StopWish:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._repeats.repeats(number):
            return
        if self.signal is None:
            self.signal = number
            return
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python; it cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
