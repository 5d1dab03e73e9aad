"""Progress of long operations on stderr: a live table on a terminal, one `key=value` line per event elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from batchcal.cli.output.messages import Messages, as_output, show_message
from batchcal.cli.output.remaining_time import Pace
from batchcal.core.progress import Field, Fields, Named, Notice, Output, Progress, Silent, key_values
from batchcal.values.calibration_events import CalibrateStarted, CalibrationEvent, PhaseBegan
from batchcal.values.study_events import (
    AcceleratorFound,
    FromWorker,
    ShapeCalibrated,
    ShapeStarted,
    StudyEvent,
    StudyStarted,
    StudyWorkerDied,
    TrialEnded,
    TrialStarted,
)
from batchcal.values.training_events import EpochEnded, StepEnded, TrainingEvent, TrainingStarted

if TYPE_CHECKING:
    from batchcal.hpo.study_status import StudyStatus

_STUDY_EVENTS: Final = (
    *(StudyStarted, AcceleratorFound, ShapeStarted, ShapeCalibrated),
    *(TrialStarted, TrialEnded, StudyWorkerDied, Notice),
)
"""Events of a study that are printed without -v, too."""
STEP_EVERY_S: Final = 5.0
"""Shortest interval between printed steps of a training, seconds: people read logs, too."""
_MEMORY: Final = ("predicted_bytes", "peak_bytes")
_STEP_FIELDS: Final = (
    *("epoch", "step", "loss", "grad_norm", "lr", "samples_per_s", "micro_batches", "micro_batch"),
    *_MEMORY,
)
"""Fields of a step that are printed, in addition to the losses of tasks. The log of the run has all fields."""

_E = TypeVar("_E")


@contextlib.contextmanager
def listening_to_calibration(messages: Messages) -> Iterator[Progress[CalibrationEvent]]:
    """Yield the progress for `obtain`."""
    if messages.quiet:
        messages.release()
        yield Silent()
    elif not is_interactive():
        yield _WithoutOutput(_DelayedLines(messages), messages)
    else:
        from batchcal.cli.views.live import CalibrationLive

        messages.release()
        with CalibrationLive() as live:
            yield _WithoutOutput(SafeListener(live), messages)


@contextlib.contextmanager
def listening_to_training(messages: Messages) -> Iterator[Progress[TrainingEvent]]:
    """Yield the progress for `train`."""
    messages.release()
    if messages.quiet:
        yield Silent()
    elif not is_interactive():
        yield Lines()
    else:
        from batchcal.cli.views.run.live import TrainingLive

        with TrainingLive() as live:
            yield SafeListener(live)


@dataclass(frozen=True)
class StudyListener:
    """Receiver of the events of a study and, now and then, of its state."""

    progress: Progress[StudyEvent]
    update: Callable[[StudyStatus], None] | None = None
    """Receives the state. None: not needed."""


@contextlib.contextmanager
def listening_to_study(messages: Messages) -> Iterator[StudyListener]:
    """Yield a live table on a terminal. Elsewhere, lines: for events of the study; with -v, for all events of its workers."""
    messages.release()
    if messages.quiet:
        yield StudyListener(Silent())
    elif not is_interactive():
        yield StudyListener(Lines() if messages.verbose else _StudyEventsOnly(Lines()))
    else:
        from batchcal.cli.views.study.live import StudyLive

        with StudyLive() as live:
            yield StudyListener(_WithoutOutput(SafeListener(live), messages), live.update)


class _DelayedLines:
    """Lines of a calibration. The first ones wait until the task is loaded: errors in its name are printed before them."""

    def __init__(self, messages: Messages) -> None:
        self._messages, self._lines = messages, Lines(messages.print)

    def event(self, event: CalibrationEvent, /) -> None:
        if not isinstance(event, CalibrateStarted | PhaseBegan):
            self._messages.release()
        self._lines.event(event)


class _WithoutOutput(Generic[_E]):
    """Listener that passes on all events, but output of the user's code only with -v."""

    def __init__(self, listener: Progress[_E], messages: Messages) -> None:
        self._listener, self._messages = listener, messages

    def event(self, event: _E, /) -> None:
        if self._messages.verbose or not isinstance(event.event if isinstance(event, FromWorker) else event, Output):
            self._listener.event(event)


class _StudyEventsOnly:
    """Listener that passes on events of the study itself, but not those of its calibrations."""

    def __init__(self, listener: Progress[StudyEvent]) -> None:
        self._listener = listener

    def event(self, event: StudyEvent, /) -> None:
        if isinstance(event.event if isinstance(event, FromWorker) else event, _STUDY_EVENTS):
            self._listener.event(event)


def is_interactive() -> bool:
    """True if stderr is a terminal that can move its cursor, and not a CI log."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM", "dumb") != "dumb"


class Lines:
    """One line per event. Steps of a training are printed only now and then, with the remaining seconds."""

    def __init__(self, print_line: Callable[[str], None] = show_message, clock: Callable[[], float] = time.monotonic) -> None:
        self._print, self._clock = print_line, clock
        self._next_step_s = -float("inf")
        self._pace = Pace()
        self._measured: StepEnded | None = None
        """Last step with measured memory: not every step is measured."""

    def event(self, event: Named, /) -> None:
        match event:
            case Output(text=text) | FromWorker(event=Output(text=text)):
                self._print(as_output(text))
                return
            case StepEnded():
                now_s = self._clock()
                self._measured = event if event.peak_bytes is not None else self._measured
                if now_s < self._next_step_s:
                    return
                self._next_step_s = now_s + STEP_EVERY_S
                self._print(key_values(event.event_name, self._step_fields(event, now_s)))
                return
            case TrainingStarted():
                self._pace.started(event, now_s=self._clock())
            case EpochEnded():
                self._pace.epoch_ended(event)
        self._print(key_values(event.event_name, event.fields()))

    def _step_fields(self, step: StepEnded, now_s: float) -> Fields:
        self._pace.stepped(step)
        losses = {key: value for key, value in step.of_tasks.items() if key.startswith("loss_")}
        left_s = self._pace.left_s(now_s=now_s)
        memory = {key: None if self._measured is None else self._measured.fields()[key] for key in _MEMORY}
        fields: dict[str, Field] = {key: value for key, value in {**step.fields(), **memory}.items() if key in _STEP_FIELDS}
        return {**fields, **losses, "left_s": None if left_s is None else round(left_s, 1)}


class SafeListener(Generic[_E]):
    """Listener that does not raise: a terminal that goes away does not end a calibration. The error of a signal passes."""

    def __init__(self, listener: Progress[_E]) -> None:
        self._listener: Progress[_E] | None = listener

    def event(self, event: _E, /) -> None:
        if self._listener is None:
            return
        try:
            self._listener.event(event)
        except (OSError, ValueError):
            self._listener = None
