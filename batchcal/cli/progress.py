"""What is told while something long runs: a live table on a terminal, one `key=value` line an event elsewhere. On stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from batchcal.cli.pace import Pace
from batchcal.cli.voice import Voice, as_output, tell
from batchcal.core.progress import Field, Fields, Named, Notice, Output, Progress, Silent, key_values
from batchcal.values.calibration_events import CalibrateStarted, CalibrationEvent, PhaseBegan
from batchcal.values.study_events import (
    AcceleratorFound,
    FromWorker,
    ShapeCalibrated,
    ShapeStarted,
    StudyEvent,
    StudyStarted,
    TrialEnded,
    TrialStarted,
    WorkerDied,
)
from batchcal.values.training_events import EpochEnded, StepEnded, TrainingEvent, TrainingStarted

if TYPE_CHECKING:
    from batchcal.hpo.seen import StudySeen

_OF_A_STUDY: Final = (
    *(StudyStarted, AcceleratorFound, ShapeStarted, ShapeCalibrated),
    *(TrialStarted, TrialEnded, WorkerDied, Notice),
)
"""Told without -v, too."""
STEP_EVERY_S: Final = 5.0
"""Steps of a training are told this often at most: a log is read by people, too."""
_MEMORY: Final = ("predicted_bytes", "peak_bytes")
_OF_A_STEP: Final = (
    *("epoch", "step", "loss", "grad_norm", "lr", "samples_per_s", "micro_batches", "micro_batch"),
    *_MEMORY,
)
"""What is told of a step, besides the losses of tasks; the run's own log has all."""

_E = TypeVar("_E")


@contextlib.contextmanager
def listening_to_calibration(voice: Voice) -> Iterator[Progress[CalibrationEvent]]:
    """The progress to hand to `obtain`."""
    if voice.quiet:
        voice.release()
        yield Silent()
    elif not is_interactive():
        yield _WithoutOutput(_Held(voice), voice)
    else:
        from batchcal.cli.views.live import CalibrationLive

        voice.release()
        with CalibrationLive() as live:
            yield _WithoutOutput(Carefully(live), voice)


@contextlib.contextmanager
def listening_to_training(voice: Voice) -> Iterator[Progress[TrainingEvent]]:
    """The progress to hand to `train`."""
    voice.release()
    if voice.quiet:
        yield Silent()
    elif not is_interactive():
        yield Lines()
    else:
        from batchcal.cli.views.training_live import TrainingLive

        with TrainingLive() as live:
            yield Carefully(live)


@dataclass(frozen=True)
class StudyListener:
    """What hears a study, and sees now and then how it stands."""

    progress: Progress[StudyEvent]
    see: Callable[[StudySeen], None] | None = None
    """None: nobody looks."""


@contextlib.contextmanager
def listening_to_study(voice: Voice) -> Iterator[StudyListener]:
    """A live table on a terminal; lines elsewhere: of the study, with -v of all that its workers do."""
    voice.release()
    if voice.quiet:
        yield StudyListener(Silent())
    elif not is_interactive():
        yield StudyListener(Lines() if voice.verbose else _OfTheStudy(Lines()))
    else:
        from batchcal.cli.views.study.live import StudyLive

        with StudyLive() as live:
            yield StudyListener(_WithoutOutput(Carefully(live), voice), live.see)


class _Held:
    """Lines of a calibration. The first wait until the task is loaded: what is wrong with its name is printed before them."""

    def __init__(self, voice: Voice) -> None:
        self._voice, self._lines = voice, Lines(voice.say)

    def event(self, event: CalibrationEvent, /) -> None:
        if not isinstance(event, CalibrateStarted | PhaseBegan):
            self._voice.release()
        self._lines.event(event)


class _WithoutOutput(Generic[_E]):
    """Passes on all events; the user's own output only with -v."""

    def __init__(self, listener: Progress[_E], voice: Voice) -> None:
        self._listener, self._voice = listener, voice

    def event(self, event: _E, /) -> None:
        if self._voice.verbose or not isinstance(event.event if isinstance(event, FromWorker) else event, Output):
            self._listener.event(event)


class _OfTheStudy:
    """Passes on what the study itself tells, and not what its calibrations do."""

    def __init__(self, listener: Progress[StudyEvent]) -> None:
        self._listener = listener

    def event(self, event: StudyEvent, /) -> None:
        if isinstance(event.event if isinstance(event, FromWorker) else event, _OF_A_STUDY):
            self._listener.event(event)


def is_interactive() -> bool:
    """A terminal that somebody looks at: no CI log, and one that can move its cursor."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM", "dumb") != "dumb"


class Lines:
    """One line an event; of the steps of a training now and then one, with the seconds that are left."""

    def __init__(self, say: Callable[[str], None] = tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._next_step_s = -float("inf")
        self._pace = Pace()
        self._measured: StepEnded | None = None
        """The last step whose memory was measured: not every one is."""

    def event(self, event: Named, /) -> None:
        match event:
            case Output(text=text) | FromWorker(event=Output(text=text)):
                self._say(as_output(text))
                return
            case StepEnded():
                now_s = self._clock()
                self._measured = event if event.peak_bytes is not None else self._measured
                if now_s < self._next_step_s:
                    return
                self._next_step_s = now_s + STEP_EVERY_S
                self._say(key_values(event.event_name, self._of_step(event, now_s)))
                return
            case TrainingStarted():
                self._pace.started(event, now_s=self._clock())
            case EpochEnded():
                self._pace.epoch_ended(event)
        self._say(key_values(event.event_name, event.fields()))

    def _of_step(self, step: StepEnded, now_s: float) -> Fields:
        self._pace.stepped(step)
        losses = {key: value for key, value in step.of_tasks.items() if key.startswith("loss_")}
        left_s = self._pace.left_s(now_s=now_s)
        held = {key: None if self._measured is None else self._measured.fields()[key] for key in _MEMORY}
        told: dict[str, Field] = {key: value for key, value in {**step.fields(), **held}.items() if key in _OF_A_STEP}
        return {**told, **losses, "left_s": None if left_s is None else round(left_s, 1)}


class Carefully(Generic[_E]):
    """A listener must not raise: a terminal that goes away does not end a calibration. A signal's error passes."""

    def __init__(self, listener: Progress[_E]) -> None:
        self._listener: Progress[_E] | None = listener

    def event(self, event: _E, /) -> None:
        if self._listener is None:
            return
        try:
            self._listener.event(event)
        except (OSError, ValueError):
            self._listener = None
