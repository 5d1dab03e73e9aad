"""What runs, on a terminal: a screen that draws itself anew, and the calibration on it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.calibration import TONES
from batchcal.cli.views.words import Tone, count
from batchcal.core.progress import Field, Fields
from batchcal.core.units import format_bytes, format_seconds

_BAR: Final = 10
_OUTCOME_TONES: Final[dict[str, Tone]] = {"fits": "good", "out-of-memory": "bad", "swapping": "bad", "suspect": "bad"}
_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_REFRESH_PER_S: Final = 8


class Screen:
    """Draws itself anew when something happened, and a few times a second."""

    def __init__(self, *, console: Console | None = None, ticking: bool = True) -> None:
        console = console or Console(stderr=True, highlight=False, emoji=False, markup=False)
        self.height = console.height
        # Where workers are forked meanwhile, no thread of ours may hold a lock: nothing ticks then.
        self._live = Live(
            console=console,
            auto_refresh=ticking,
            refresh_per_second=_REFRESH_PER_S,
            get_renderable=self.draw,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._ticking = ticking

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self._live.__exit__(kind, error, trace)

    def close(self) -> None:
        """Nothing runs any more: the last drawing stays on the screen."""

    def draw(self) -> RenderableType:
        return Text("")

    def event(self, name: str, fields: Fields) -> None:
        self.note(name, fields)
        if not self._ticking:
            self.refresh()

    def refresh(self) -> None:
        """Draw now."""
        self._live.refresh()

    def note(self, name: str, fields: Fields) -> None:
        """Remember it."""


class CalibrationLive(Screen):
    """The probes as they end, the one that runs, the best so far."""

    def __init__(self, *, console: Console | None = None, ticking: bool = True) -> None:
        self._started: Fields = {}
        self._rows: list[Fields] = []
        self._running: Fields | None = None
        self._running_since = self._began = time.monotonic()
        self._phase: Fields = {}
        self._best: dict[str, Field] = {}
        self._notes: list[str] = []
        self._ended = False
        super().__init__(console=console, ticking=ticking)

    def note(self, name: str, fields: Fields) -> None:
        match name:
            case "calibrate_started":
                self._started = self._started or dict(fields)
            case "phase":
                self._phase = dict(fields)
            case "probe_started":
                self._running, self._running_since = dict(fields), time.monotonic()
            case "probe_ended" | "probe_kept":
                self._rows.append(dict(fields))
                self._running = None
            case "best":
                self._best[str(fields.get("mode"))] = fields.get("batch")
            case "note":
                self._notes.append(str(fields.get("text")))
            case "calibrate_ended":
                self.close()

    def close(self) -> None:
        self._ended, self._running = True, None

    def draw(self) -> RenderableType:
        table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
        table.add_column("#", justify="right", style="dim")
        table.add_column("phase")
        for name in ("batch", "predicted", "peak"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("of budget", no_wrap=True)
        table.add_column("samples/s", justify="right")
        table.add_column("outcome", no_wrap=True, overflow="ellipsis")
        room = max(self.height - 7 - len(self._notes[-2:]), 4)
        for row in self._rows[-room:]:
            table.add_row(*_row(row))
        if self._running is not None:
            table.add_row(*self._running_row(self._running))
        parts: list[RenderableType] = [self._head(), table]
        if self._running is None and not self._ended:
            parts.append(Text(f" {_spinner()} {self._phase.get('why') or 'beginning'}", style="cyan"))
        parts += [Text(f"  - {text}", style="dim", no_wrap=True, overflow="ellipsis") for text in self._notes[-2:]]
        return Group(*parts)

    def _head(self) -> Text:
        started, spent = self._started, time.monotonic() - self._began
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append("calibrating ", "bold")
        head.append(f"{started.get('task', '')} on {started.get('device', '')}")
        budget, limit_s = started.get("budget_bytes"), started.get("time_limit_s")
        if isinstance(budget, int):
            head.append(f", budget {format_bytes(budget)}", "dim")
        if isinstance(limit_s, float | int):
            head.append(f", {format_seconds(spent)} of {format_seconds(limit_s)}", "dim")
        for mode, batch in self._best.items():
            head.append(f"  {mode} {batch}", "bold green")
        return head

    def _running_row(self, fields: Fields) -> list[RenderableType]:
        waiting = f"{_spinner()} {format_seconds(time.monotonic() - self._running_since)}"
        row = _row({**fields, "outcome": ""})
        return [*row[:-1], Text(waiting, style="cyan")]


def _row(fields: Fields) -> list[RenderableType]:
    outcome = str(fields.get("outcome") or "")
    style = TONES[_OUTCOME_TONES.get(outcome, "odd")]
    peak, budget, rate = fields.get("peak_bytes"), fields.get("budget_bytes"), fields.get("samples_per_s")
    batch = fields.get("batch")
    share = peak / budget if isinstance(peak, int) and isinstance(budget, int) and budget > 0 else None
    predicted = fields.get("predicted_bytes")
    return [
        str(fields.get("sequence", "")),
        str(fields.get("phase", "")),
        f"{'eval ' if fields.get('mode') == 'eval' else ''}{count(batch) if isinstance(batch, int) else ''}",
        Text(format_bytes(predicted) if isinstance(predicted, int) else "", style="dim"),
        format_bytes(peak) if isinstance(peak, int) else "",
        "" if share is None else Text("█" * max(1, round(min(share, 1.0) * _BAR)), style=style),
        count(rate) if isinstance(rate, float | int) else "",
        Text(outcome.replace("-", " "), style=style),
    ]


def _spinner() -> str:
    return _SPINNER[int(time.monotonic() * _REFRESH_PER_S) % len(_SPINNER)]
