"""Judges the epochs that a trial's child reports, in a thread: a storage may take seconds, while memory must be watched."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from pydantic import ValidationError

from batchcal.guard.channel.wire import Message
from batchcal.hpo.trials.job import Reached

Judge = Callable[[Reached], str | None]
"""Gets the report of an epoch. Returns the reason to stop the trial, or None."""


class StopTrial(Exception):
    """Raised in the thread that watches the child. The child is ended at once."""


class EpochJudge:
    """Passes the child's messages to `judge`, one after another. Close it: `close` returns after the last message is judged."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._waiting: queue.SimpleQueue[Reached | None] = queue.SimpleQueue()
        self.error: Exception | None = None
        """Error that `judge` raised."""
        self._stopped = False
        self.why = ""
        """Reason why the trial was stopped."""
        self.peak_bytes = 0
        """Highest memory peak that the child reported."""
        self._thread = threading.Thread(target=self._work, name="batchcal-judge", daemon=True)
        self._thread.start()

    def add(self, message: Message) -> None:
        """Take a message of the child."""
        try:
            reached = Reached.model_validate(message)
        except ValidationError:  # from the user's code, which may write anywhere
            return
        self.peak_bytes = max(self.peak_bytes, reached.peak_bytes)
        self._waiting.put(reached)

    def check(self) -> None:
        """Raises:
        StopTrial: the trial must stop.
        Exception: the error that `judge` raised.
        """
        if self.error is not None:
            raise self.error
        if self._stopped:
            raise StopTrial(self.why)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (reached := self._waiting.get()) is not None:
            if self.error is not None or self._stopped:
                continue
            try:
                why = self._judge(reached)
            except Exception as error:  # noqa: BLE001 - raised in the thread that watches
                self.error = error
                continue
            if why is not None:
                self.why, self._stopped = why, True
