"""SIGINT and SIGTERM as a stop request that the loop grants when its state is complete."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Final

from batchcal.core.signals import Repeats

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S: Final = 0.01


class StopRequest:
    """Stop request. While entered, it records the first signal. A second signal has its original effect.

    Outside of the main thread, Python does not accept handlers: signals keep their meaning and are never recorded.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """Number of the recorded signal. None: no signal yet."""
        self.reason: str | None = None
        """Reason to end the training after the current step, if requested without a signal."""
        self._before: dict[int, signal._HANDLER] = {}
        self._repeats = Repeats()

    @property
    def granted(self) -> bool:
        """True if the training is to stop at the next possible point."""
        return self.signal is not None or self.reason is not None

    def request(self, reason: str) -> None:
        """End the training cleanly after the current step: with a checkpoint and a result."""
        self.reason = reason

    def await_signal(self, limit_s: float) -> bool:
        """Wait up to `limit_s` for a signal. Return True if a signal has arrived."""
        until = time.monotonic() + limit_s
        while self.signal is None and self._before and time.monotonic() < until:
            time.sleep(_POLL_S)
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self._repeats.repeats(number):
            return
        if self.signal is None:
            self.signal = number
            return
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python; it cannot be restored from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
