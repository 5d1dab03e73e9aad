"""What is told while something long runs: a live table on a terminal, one `key=value` line an event elsewhere. On stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from batchcal.cli.pace import Pace
from batchcal.cli.voice import Voice, tell
from batchcal.core.progress import Field, Fields, Progress, Silent, key_values

if TYPE_CHECKING:
    from batchcal.hpo.seen import StudySeen

OF_A_STUDY: Final = frozenset(
    {"study_started", "accelerator", "shape_started", "shape_calibrated", "trial_started", "trial_ended", "worker_died", "notice"}
)
STEP_EVERY_S: Final = 5.0
"""Steps of a training are told this often at most: a log is read by people, too."""
_MEMORY: Final = ("predicted_bytes", "peak_bytes")
_OF_A_STEP: Final = (
    *("epoch", "step", "loss", "grad_norm", "lr", "samples_per_s", "micro_batches", "micro_batch"),
    *_MEMORY,
)
"""What is told of a step, besides the losses of tasks; the run's own log has all."""


@contextlib.contextmanager
def listening(voice: Voice, kind: Literal["calibration", "training"]) -> Iterator[Progress]:
    """The progress to hand to the library."""
    if voice.quiet:
        yield Silent()
    elif not is_interactive():
        yield Lines()
    elif kind == "calibration":
        from batchcal.cli.views.live import CalibrationLive

        with CalibrationLive() as calibrating:
            yield Carefully(calibrating)
    else:
        from batchcal.cli.views.training_live import TrainingLive

        with TrainingLive() as training:
            yield Carefully(training)


@dataclass(frozen=True)
class StudyListener:
    """What hears a study, and sees now and then how it stands."""

    progress: Progress
    see: Callable[[StudySeen], None] | None = None
    """None: nobody looks."""


@contextlib.contextmanager
def listening_to_study(voice: Voice) -> Iterator[StudyListener]:
    """A live table on a terminal; lines elsewhere: of the study, with -v of all that its workers do."""
    if voice.quiet:
        yield StudyListener(Silent())
    elif not is_interactive():
        yield StudyListener(Lines() if voice.verbose else Only(Lines(), OF_A_STUDY))
    else:
        from batchcal.cli.views.study.live import StudyLive

        with StudyLive() as live:
            yield StudyListener(Carefully(live), live.see)


class Only:
    """Passes on some events."""

    def __init__(self, listener: Progress, names: Collection[str]) -> None:
        self._listener, self._names = listener, names

    def event(self, name: str, fields: Fields) -> None:
        if name in self._names:
            self._listener.event(name, fields)


def is_interactive() -> bool:
    """A terminal that somebody looks at: no CI log, and one that can move its cursor."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM", "dumb") != "dumb"


class Lines:
    """One line an event; of the steps of a training now and then one, with the seconds that are left."""

    def __init__(self, say: Callable[[str], None] = tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._next_step_s = -float("inf")
        self._pace = Pace()
        self._held: Fields = {}
        """The last step whose memory was measured: not every one is."""

    def event(self, name: str, fields: Fields) -> None:
        if name == "step":
            now_s = self._clock()
            self._held = fields if fields.get("peak_bytes") is not None else self._held
            if now_s < self._next_step_s:
                return
            self._next_step_s = now_s + STEP_EVERY_S
            fields = self._step(fields, now_s)
        elif name == "training_started":
            self._pace.started(fields, now_s=self._clock())
        elif name == "epoch_ended":
            self._pace.epoch_ended(fields)
        self._say(key_values(name, fields))

    def _step(self, fields: Fields, now_s: float) -> Fields:
        self._pace.stepped(fields)
        losses: dict[str, Field] = {key: value for key, value in fields.items() if key.startswith("loss_")}
        left_s = self._pace.left_s(now_s=now_s)
        held = {key: self._held.get(key) for key in _MEMORY}
        told: dict[str, Field] = {key: value for key, value in {**fields, **held}.items() if key in _OF_A_STEP}
        return {**told, **losses, "left_s": None if left_s is None else round(left_s, 1)}


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
