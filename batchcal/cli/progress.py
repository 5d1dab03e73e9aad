"""What is told while something long runs: a live table on a terminal, one `key=value` line an event elsewhere. On stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal

from batchcal.cli.voice import Voice, tell
from batchcal.core.progress import Fields, Progress, Silent, key_values

STEP_EVERY_S: Final = 5.0
"""Steps of a training are told this often at most: a log is read by people, too."""


@contextlib.contextmanager
def listening(voice: Voice, kind: Literal["calibration", "training"]) -> Iterator[Progress]:
    """The progress to hand to the library."""
    if voice.quiet:
        yield Silent()
    elif not is_interactive():
        yield Lines()
    else:
        from batchcal.cli.views.live import CalibrationLive, TrainingLive

        with CalibrationLive() if kind == "calibration" else TrainingLive() as live:
            yield Carefully(live)


def is_interactive() -> bool:
    """A terminal that somebody looks at: no CI log, and one that can move its cursor."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM", "dumb") != "dumb"


class Lines:
    """One line an event."""

    def __init__(self, say: Callable[[str], None] = tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._last_step: float | None = None

    def event(self, name: str, fields: Fields) -> None:
        if name == "step":
            now = self._clock()
            if self._last_step is not None and now - self._last_step < STEP_EVERY_S:
                return
            self._last_step = now
        self._say(key_values(name, fields))


class Carefully:
    """A listener must not raise: a terminal that goes away does not end a calibration. A signal's error passes."""

    def __init__(self, listener: Progress) -> None:
        self._listener: Progress | None = listener

    def event(self, name: str, fields: Fields) -> None:
        if self._listener is None:
            return
        try:
            self._listener.event(name, fields)
        except (OSError, ValueError):
            self._listener = None
