"""A training while it runs, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from batchcal.cli.pace import Pace
from batchcal.cli.views.live import Screen
from batchcal.cli.views.run.plot import number
from batchcal.cli.views.words import count
from batchcal.core.progress import Field, Fields
from batchcal.core.units import format_bytes, format_seconds

EVERY_S: Final = 0.25
SHARE: Final = 0.002
"""Drawing takes no more of the time than this: one that takes 1 ms is done every 0.5 s. No thread of ours may draw meanwhile,
since workers are forked, so that it is the training that waits for it."""
AT_LEAST_EVERY_S: Final = 5.0
"""However slow the terminal is: what never moves looks dead."""
_BAR: Final = 24
_MOST_NOTES: Final = 4
_FULL: Final = 0.9
"""Of the budget, from where on the bar is yellow."""


class TrainingLive(Screen):
    """A line for every epoch that ended and for what happened; at the bottom where it is, how fast, how full the memory is."""

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started: Fields = {}
        self._step: Fields = {}
        self._held: Fields = {}
        """The last step whose memory was measured: not every one is."""
        self._epochs: list[Text] = []
        self._notes: list[Text] = []
        self._pace = Pace()
        self._next_s = 0.0
        super().__init__(console=console, ticking=False)

    def close(self) -> None:
        self._step = {}

    def event(self, name: str, fields: Fields) -> None:
        self.note(name, fields)
        began = self._clock()
        if name == "step" and began < self._next_s:
            return
        self.refresh()
        took = self._clock() - began
        self._next_s = began + min(max(EVERY_S, took / SHARE), AT_LEAST_EVERY_S)

    def note(self, name: str, fields: Fields) -> None:
        match name:
            case "training_started":
                self._started = dict(fields)
                self._pace.started(fields, now_s=self._clock())
            case "step":
                self._step = fields
                self._held = fields if fields.get("peak_bytes") is not None else self._held
                self._pace.stepped(fields)
            case "epoch_ended":
                self._epochs.append(self._epoch(fields))
                self._pace.epoch_ended(fields)
                self._step = {}
            case "recovered":
                what = f"out of memory in {fields.get('phase')} of {fields.get('samples')}"
                self._note(fields, f"{what}: {fields.get('action')}, at most {fields.get('safe')} now")
            case "resized":
                self._note(fields, f"size {fields.get('was')} to {fields.get('now')}: {fields.get('why')}")
            case "notice":
                self._notes.append(Text(str(fields.get("text"))))
            case "training_ended":
                self.close()

    def _note(self, fields: Fields, text: str) -> None:
        self._notes.append(Text(f"epoch {_next(fields)}, step {fields.get('step')}: {text}", "yellow"))

    def draw(self) -> RenderableType:
        moving = self._moving() if self._step else []
        notes = [Text.assemble("  - ", text, no_wrap=True, overflow="ellipsis") for text in self._notes[-_MOST_NOTES:]]
        room = max(self.height - 2 - len(moving) - len(notes), 3)
        return Group(*self._head(), *self._epochs[-room:], *notes, *moving)

    def _head(self) -> list[Text]:
        if not self._started:
            return []
        where = [str(self._started[name]) for name in ("device", "allocator") if self._started.get(name)]
        spec = self._started.get("spec") or ""
        return [Text.assemble(("training ", "bold"), f"{spec} on {', '.join(where)}", no_wrap=True, overflow="ellipsis")]

    def _epoch(self, fields: Fields) -> Text:
        told = [f"eval {key.removeprefix('eval_')} {_number(value)}" for key, value in fields.items() if key.startswith("eval_")]
        rate = fields.get("samples_per_s")
        told += [f"{count(rate)}/s"] if isinstance(rate, float | int) else []
        line = ", ".join([f"loss {_number(fields.get('loss'))}", *told])
        text = f"  epoch {_next(fields)} of {self._pace.epochs or '?'}: {line}"
        return Text(text, "green", no_wrap=True, overflow="ellipsis")

    def _moving(self) -> list[Text]:
        return [
            Text.assemble("  ", *parts, no_wrap=True, overflow="ellipsis")
            for parts in (self._where(), self._losses(), self._memory(), self._speed())
            if parts
        ]

    def _where(self) -> list[str | tuple[str, str]]:
        step, of = self._step, self._started.get("steps_per_epoch")
        share, left_s = self._pace.share, self._pace.left_s(now_s=self._clock())
        where = f"epoch {_next(step)} of {self._pace.epochs or '?'}, step {step.get('step')}{f' of {of}' if of else ''}"
        bar: list[str | tuple[str, str]] = [] if share is None else [*_bar(share, "cyan"), f" {share:.0%}  "]
        return [*bar, where, f", {format_seconds(left_s)} left" if left_s is not None else ""]

    def _losses(self) -> list[str | tuple[str, str]]:
        told = [("loss", self._step.get("loss"))]
        told += [(key.removeprefix("loss_"), value) for key, value in self._step.items() if key.startswith("loss_")]
        told += [("grad norm", self._step.get("grad_norm")), ("lr", self._step.get("lr"))]
        parts: list[str | tuple[str, str]] = []
        for name, value in told:
            if value is not None:
                parts += [(f"{name} ", "dim"), f"{_number(value)}  "]
        return parts

    def _memory(self) -> list[str | tuple[str, str]]:
        peak, predicted = self._held.get("peak_bytes"), self._held.get("predicted_bytes")
        budget = self._started.get("budget_bytes")
        if not isinstance(peak, int):
            return []
        parts: list[str | tuple[str, str]] = []
        if isinstance(budget, int) and budget > 0:
            style = "red" if peak > budget else "yellow" if peak > _FULL * budget else "green"
            parts += _bar(peak / budget, style)
        of = f" of {format_bytes(budget)}" if isinstance(budget, int) else ""
        parts.append(f" {format_bytes(peak)}{of}")
        return [*parts, (f", {format_bytes(predicted)} predicted" if isinstance(predicted, int) else "", "dim")]

    def _speed(self) -> list[str | tuple[str, str]]:
        rate, number_of, size = (self._step.get(name) for name in ("samples_per_s", "micro_batches", "micro_batch"))
        parts: list[str | tuple[str, str]] = [f"{count(rate)} samples/s"] if isinstance(rate, float | int) else []
        if isinstance(number_of, int) and isinstance(size, int):
            samples = self._step.get("samples")
            whole = f" for {count(samples)}" if isinstance(samples, int) else ""
            parts.append(f"{', ' if parts else ''}{number_of} x {count(size)}{whole}")
        return parts


def _bar(share: float, style: str) -> list[str | tuple[str, str]]:
    filled = round(min(max(share, 0.0), 1.0) * _BAR)
    return [("█" * filled, style), ("░" * (_BAR - filled), "dim")]


def _number(value: Field) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _next(fields: Fields) -> object:
    epoch = fields.get("epoch")
    return epoch + 1 if isinstance(epoch, int) else epoch
