"""Live view of a training on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, assert_never

from rich.console import Console, Group, RenderableType
from rich.text import Text

from batchcal.cli.output.remaining_time import Pace
from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.live import Screen
from batchcal.cli.views.words import count
from batchcal.core.progress import Field, Notice
from batchcal.core.units import format_bytes, format_seconds
from batchcal.train.report.events import LOSS
from batchcal.values.training_events import (
    CheckpointSaved,
    EpochEnded,
    Recovered,
    Resized,
    StepEnded,
    TrainingEnded,
    TrainingEvent,
    TrainingStarted,
)

EVERY_S: Final = 0.25
SHARE: Final = 0.002
"""Largest share of the time that drawing takes: a drawing of 1 ms is made every 0.5 s. No thread may draw meanwhile because
workers are forked, so the training waits for each drawing."""
AT_LEAST_EVERY_S: Final = 5.0
"""Longest interval between drawings, seconds, however slow the terminal is: a still screen looks dead."""
_BAR: Final = 24
_MOST_NOTES: Final = 4
_FULL: Final = 0.9
"""Share of the budget above which the bar is yellow."""


class TrainingLive(Screen[TrainingEvent]):
    """One line per ended epoch and per event. The bottom shows the position, the speed and how full the memory is."""

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started: TrainingStarted | None = None
        self._step: StepEnded | None = None
        self._measured: StepEnded | None = None
        """Last step with measured memory: not every step is measured."""
        self._epochs: list[Text] = []
        self._notes: list[Text] = []
        self._pace = Pace()
        self._next_s = 0.0
        super().__init__(console=console, ticking=False)

    def close(self) -> None:
        self._step = None

    def event(self, event: TrainingEvent, /) -> None:
        self.note(event)
        start_s = self._clock()
        if isinstance(event, StepEnded) and start_s < self._next_s:
            return
        self.refresh()
        duration_s = self._clock() - start_s
        self._next_s = start_s + min(max(EVERY_S, duration_s / SHARE), AT_LEAST_EVERY_S)

    def note(self, event: TrainingEvent, /) -> None:
        match event:
            case TrainingStarted():
                self._started = event
                self._pace.started(event, now_s=self._clock())
            case StepEnded():
                self._step = event
                self._measured = event if event.peak_bytes is not None else self._measured
                self._pace.stepped(event)
            case EpochEnded():
                self._epochs.append(self._epoch(event))
                self._pace.epoch_ended(event)
                self._step = None
            case Recovered():
                safe = "" if event.safe is None else f", at most {event.safe} now"
                self._note(event, f"out of memory in {event.phase} of {event.samples}: {event.action}{safe}")
            case Resized():
                self._note(event, f"micro-batch {event.was} to {event.now}: {event.why}")
            case Notice():
                self._notes.append(Text(event.text))
            case TrainingEnded():
                self.close()
            case CheckpointSaved():
                pass
            case never:
                assert_never(never)

    def _note(self, event: Recovered | Resized, text: str) -> None:
        self._notes.append(Text(f"epoch {event.epoch + 1}, step {event.step}: {text}", "yellow"))

    def draw(self) -> RenderableType:
        current = [] if self._step is None else self._current(self._step)
        notes = [Text.assemble("  - ", text, no_wrap=True, overflow="ellipsis") for text in self._notes[-_MOST_NOTES:]]
        most_epochs = max(self.height - 2 - len(current) - len(notes), 3)
        return Group(*self._head(), *self._epochs[-most_epochs:], *notes, *current)

    def _head(self) -> list[Text]:
        started = self._started
        if started is None:
            return []
        setup = f"{started.about.get('spec') or ''} on {started.device}, {started.allocator}"
        return [Text.assemble(("training ", "bold"), setup, no_wrap=True, overflow="ellipsis")]

    def _epoch(self, event: EpochEnded) -> Text:
        evaluation = [f"eval {name} {_number(value)}" for name, value in event.evaluation.items()]
        line = ", ".join([f"loss {_number(event.loss)}", *evaluation, f"{count(event.samples_per_s)} samples/s"])
        text = f"  epoch {event.epoch + 1} of {self._pace.epochs or '?'}: {line}"
        return Text(text, "green", no_wrap=True, overflow="ellipsis")

    def _current(self, step: StepEnded) -> list[Text]:
        return [
            Text.assemble("  ", *parts, no_wrap=True, overflow="ellipsis")
            for parts in (self._position(step), _losses(step), self._memory(), _speed(step))
            if parts
        ]

    def _position(self, step: StepEnded) -> list[str | tuple[str, str]]:
        steps = None if self._started is None else self._started.steps_per_epoch
        share, left_s = self._pace.share, self._pace.left_s(now_s=self._clock())
        position = f"epoch {step.epoch + 1} of {self._pace.epochs or '?'}, step {step.step}{f' of {steps}' if steps else ''}"
        bar: list[str | tuple[str, str]] = [] if share is None else [*_bar(share, "cyan"), f" {share:.0%}  "]
        return [*bar, position, f", {format_seconds(left_s)} left" if left_s is not None else ""]

    def _memory(self) -> list[str | tuple[str, str]]:
        if self._measured is None or self._measured.peak_bytes is None:
            return []
        peak, predicted = self._measured.peak_bytes, self._measured.predicted_bytes
        budget = 0 if self._started is None else self._started.budget_bytes
        parts: list[str | tuple[str, str]] = []
        if budget > 0:
            style = "red" if peak > budget else "yellow" if peak > _FULL * budget else "green"
            parts += _bar(peak / budget, style)
        of_budget = f" of {format_bytes(budget)}" if budget > 0 else ""
        parts.append(f" {format_bytes(peak)}{of_budget}")
        return [*parts, ("" if predicted is None else f", {format_bytes(predicted)} predicted", "dim")]


def _losses(step: StepEnded) -> list[str | tuple[str, str]]:
    values: list[tuple[str, float | None]] = [("loss", step.loss)]
    values += [(key.removeprefix(LOSS), value) for key, value in step.of_tasks.items() if key.startswith(LOSS)]
    values += [("grad norm", step.grad_norm), ("lr", step.lr)]
    parts: list[str | tuple[str, str]] = []
    for name, value in values:
        if value is not None:
            parts += [(f"{name} ", "dim"), f"{_number(value)}  "]
    return parts


def _speed(step: StepEnded) -> list[str | tuple[str, str]]:
    sizes = f"{step.micro_batches} x {count(step.micro_batch)} for {count(step.samples)}"
    return [f"{count(step.samples_per_s)} samples/s", f", {sizes}"]


def _bar(share: float, style: str) -> list[str | tuple[str, str]]:
    filled = round(min(max(share, 0.0), 1.0) * _BAR)
    return [("█" * filled, style), ("░" * (_BAR - filled), "dim")]


def _number(value: Field) -> str:
    return number(value) if isinstance(value, float) else str(value)
