"""Hears a trial's child and has its epochs judged, in a thread: a storage may take seconds, in which memory must be watched."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from pydantic import ValidationError

from batchcal.guard.wire import Message
from batchcal.hpo.job import Reached

Judge = Callable[[Reached], str | None]
"""Told of an epoch; says why the trial is not wanted any more, or None."""


class GaveUp(Exception):
    """Raised into who watches the child: it is ended at once."""


class Listening:
    """What the child says goes to `judge`, one after the other. Close it: what was said last is judged before that returns."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._waiting: queue.SimpleQueue[Reached | None] = queue.SimpleQueue()
        self.error: Exception | None = None
        """What judging raised."""
        self._gave_up = False
        self.why = ""
        """Why it was given up."""
        self.peak_bytes = 0
        """The most memory that the child told of."""
        self._thread = threading.Thread(target=self._work, name="batchcal-judge", daemon=True)
        self._thread.start()

    def hear(self, message: Message) -> None:
        """A message of the child."""
        try:
            reached = Reached.model_validate(message)
        except ValidationError:  # from the user's code, which may write where it pleases
            return
        self.peak_bytes = max(self.peak_bytes, reached.peak_bytes)
        self._waiting.put(reached)

    def check(self) -> None:
        """Raises:
        GaveUp: it is not wanted any more.
        Exception: what judging raised.
        """
        if self.error is not None:
            raise self.error
        if self._gave_up:
            raise GaveUp(self.why)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (reached := self._waiting.get()) is not None:
            if self.error is not None or self._gave_up:
                continue
            try:
                why = self._judge(reached)
            except Exception as error:  # noqa: BLE001 - raised in the thread that watches
                self.error = error
                continue
            if why is not None:
                self.why, self._gave_up = why, True
