"""Live views on a terminal: a screen that redraws itself, and the view of a calibration."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Generic, Self, TypeVar, assert_never

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from batchcal.cli.output.messages import as_output
from batchcal.cli.views.calibration.view import TONES
from batchcal.cli.views.words import Tone, count
from batchcal.core.progress import Note, Output
from batchcal.core.units import format_bytes, format_seconds
from batchcal.values.calibration_events import (
    Attributed,
    BestFound,
    CalibrateEnded,
    CalibrateStarted,
    CalibrationEvent,
    FinalistEnded,
    PhaseBegan,
    ProbeEnded,
    ProbeKept,
    ProbeStarted,
    RaceKept,
    Rehearsed,
    ShapeTraced,
    SizeEnded,
    TurnEnded,
)
from batchcal.values.study_events import FromWorker

_BAR: Final = 10
_OUTCOME_TONES: Final[dict[str, Tone]] = {"fits": "good", "out-of-memory": "bad", "swapping": "bad", "suspect": "bad"}
_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_REFRESH_PER_S: Final = 8
_E = TypeVar("_E")


class Screen(Generic[_E]):
    """Screen that redraws itself a few times a second, or after each event if `ticking` is False."""

    def __init__(self, *, console: Console | None = None, ticking: bool = True) -> None:
        console = console or Console(stderr=True, highlight=False, emoji=False, markup=False)
        self.height = console.height
        # If workers are forked meanwhile, no thread of batchcal may hold a lock. `ticking` is False then.
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
        """Prepare the last drawing, which stays on the screen: nothing runs any more."""

    def draw(self) -> RenderableType:
        return Text("")

    def event(self, event: _E, /) -> None:
        match event:
            case Output(text=text) | FromWorker(event=Output(text=text)):
                self._live.console.print(as_output(text), markup=False, highlight=False, emoji=False)
            case _:
                pass
        self.note(event)
        if not self._ticking:
            self.refresh()

    def refresh(self) -> None:
        """Draw now."""
        self._live.refresh()

    def note(self, event: _E, /) -> None:
        """Store an event for the next drawing."""


class CalibrationLive(Screen[CalibrationEvent]):
    """Live view of a calibration: the ended probes, the running probe, the best sizes so far."""

    def __init__(self, *, console: Console | None = None, ticking: bool = True) -> None:
        self._started: CalibrateStarted | None = None
        self._rows: list[ProbeEnded | ProbeKept] = []
        self._running: ProbeStarted | None = None
        self._running_since = self._start_s = time.monotonic()
        self._activity = ""
        self._best: dict[str, int] = {}
        self._notes: list[str] = []
        self._ended = False
        super().__init__(console=console, ticking=ticking)

    def note(self, event: CalibrationEvent, /) -> None:
        match event:
            case CalibrateStarted():
                self._started = self._started or event
            case PhaseBegan():
                self._activity = event.why
            case ProbeStarted():
                self._running, self._running_since = event, time.monotonic()
            case ProbeEnded() | ProbeKept():
                self._rows.append(event)
                self._running = None
            case BestFound():
                self._best[event.mode] = event.batch
            case Note():
                self._notes.append(event.text)
            case CalibrateEnded():
                self.close()
            case TurnEnded() | RaceKept() | SizeEnded() | FinalistEnded() | Rehearsed() | Attributed() | ShapeTraced() | Output():
                pass
            case never:
                assert_never(never)

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
        most_rows = max(self.height - 7 - len(self._notes[-2:]), 4)
        for row in self._rows[-most_rows:]:
            table.add_row(*_row(row))
        if self._running is not None:
            table.add_row(*self._running_row(self._running))
        parts: list[RenderableType] = [self._head(), table]
        if self._running is None and not self._ended:
            parts.append(Text(f" {_spinner()} {self._activity or 'starting'}", style="cyan"))
        parts += [Text(f"  - {text}", style="dim", no_wrap=True, overflow="ellipsis") for text in self._notes[-2:]]
        return Group(*parts)

    def _head(self) -> Text:
        started, spent_s = self._started, time.monotonic() - self._start_s
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append("calibrating ", "bold")
        if started is not None:
            head.append(f"{started.task} on {started.device}")
            head.append(f", budget {format_bytes(started.budget_bytes)}", "dim")
            head.append(f", {format_seconds(spent_s)} of {format_seconds(started.time_limit_s)}", "dim")
        for mode, batch in self._best.items():
            head.append(f"  {mode} {batch}", "bold green")
        return head

    def _running_row(self, probe: ProbeStarted) -> list[RenderableType]:
        waiting = f"{_spinner()} {format_seconds(time.monotonic() - self._running_since)}"
        return [*_request_cells(probe), "", "", "", Text(waiting, style="cyan")]


def _request_cells(probe: ProbeStarted | ProbeEnded | ProbeKept) -> list[RenderableType]:
    predicted = probe.predicted_bytes
    return [
        str(probe.sequence),
        probe.phase,
        f"{'eval ' if probe.mode == 'eval' else ''}{count(probe.batch)}",
        Text("" if predicted is None else format_bytes(predicted), style="dim"),
    ]


def _row(probe: ProbeEnded | ProbeKept) -> list[RenderableType]:
    style = TONES[_OUTCOME_TONES.get(probe.outcome, "odd")]
    peak, rate = probe.peak_bytes, probe.samples_per_s
    share = None if peak is None or probe.budget_bytes <= 0 else peak / probe.budget_bytes
    return [
        *_request_cells(probe),
        "" if peak is None else format_bytes(peak),
        "" if share is None else Text("█" * max(1, round(min(share, 1.0) * _BAR)), style=style),
        "" if rate is None else count(rate),
        Text(probe.outcome.replace("-", " "), style=style),
    ]


def _spinner() -> str:
    return _SPINNER[int(time.monotonic() * _REFRESH_PER_S) % len(_SPINNER)]
