"""A run as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from batchcal.cli.views.charts.plot import Plot
from batchcal.cli.views.charts.plot_svg import POINTS
from batchcal.cli.views.pages.page import HALF, Card, Cell, Chart, Line, Page, Section, Table
from batchcal.cli.views.run import charts
from batchcal.cli.views.run.epochs import epochs_table
from batchcal.cli.views.run.words import ShownRun, about, description, position_of, summary
from batchcal.cli.views.words import count
from batchcal.core.units import count_of, format_seconds
from batchcal.train.report.run import Happening, LoggedEpoch, LoggedRecovery, LoggedResize, Run

_MOST_ROWS: Final = 200
"""Most rows of events, and of epochs. Of more, the last ones are shown."""


def page(shown: ShownRun) -> str:
    """Return the complete document."""
    run = shown.run
    rows = [
        *_wide("loss", charts.loss(run, POINTS)),
        *_wide("loss of each task", charts.task_losses(run, POINTS)),
        *_wide("peak memory of each step", charts.memory(run, POINTS), height=360),
        *_side_by_side(
            ("samples/s", charts.throughput(run, POINTS)),
            ("largest micro-batch of a step", charts.sizes(run, POINTS)),
            ("predicted against measured memory", charts.predictions(run)),
            ("weights of the tasks", charts.task_weights(run, POINTS)),
            ("gradient norm", charts.gradient_norms(run, POINTS)),
            ("learning rate", charts.learning_rate(run, POINTS)),
        ),
        *_epochs(run),
        *_happenings(run),
        *([(Section("notes", items=tuple(run.remarks)),)] if run.remarks else []),
    ]
    return Page(
        title=f"{run.started.spec}: run",
        name=run.started.spec,
        badge=shown.state,
        good=shown.succeeded,
        about=tuple(about(run)),
        warnings=_warnings(run),
        cards=tuple(Card(name, answer, (Line(remark, "soft"),)) for name, answer, remark in summary(run)),
        rows=tuple(rows),
        footer=f"{run.path}{f' · batchcal {run.latest.batchcal}' if run.latest.batchcal else ''}",
    ).html()


def _warnings(run: Run) -> tuple[str, ...]:
    steps = run.steps.not_finite("loss")
    if not steps:
        return ()
    return (f"the loss is NaN or infinite at {count_of(len(steps), 'step')}, first at step {count(steps[0])}",)


def _wide(title: str, plot: Plot | None, *, height: int = 320) -> list[tuple[Section, ...]]:
    return [] if plot is None else [(Section(title, chart=Chart.of(plot, height=height)),)]


def _side_by_side(*sections: tuple[str, Plot | None]) -> list[tuple[Section, ...]]:
    """Return one row with the existing charts. The page puts two beside each other if it is wide enough."""
    existing = [(title, plot) for title, plot in sections if plot is not None]
    if len(existing) < 2:
        return [(Section(title, chart=Chart.of(plot, height=280)),) for title, plot in existing]
    return [tuple(Section(title, chart=Chart.of(plot, width=HALF, height=300)) for title, plot in existing)]


def _epochs(run: Run) -> list[tuple[Section, ...]]:
    if not run.epochs:
        return []
    heads, rows = epochs_table(run)
    return [(Section(f"epochs{_last_of(len(rows))}", table=Table.of(heads, rows[-_MOST_ROWS:], numbers=set(heads))),)]


def _happenings(run: Run) -> list[tuple[Section, ...]]:
    events: list[Happening] = [event for event in run.happenings if not isinstance(event, LoggedEpoch)]
    if not events:
        return []
    table = Table.of(("time", "position", "event"), (), numbers={"time"})
    rows = tuple(_row(event) for event in events[-_MOST_ROWS:])
    return [(Section(f"events{_last_of(len(events))}", table=replace(table, rows=rows)),)]


def _row(event: Happening) -> tuple[Cell, ...]:
    kind = "recovered" if isinstance(event, LoggedRecovery) else "resized" if isinstance(event, LoggedResize) else "soft"
    return Cell(format_seconds(event.at), "n soft"), Cell(position_of(event)), Cell(description(event), f"what {kind}")


def _last_of(rows: int) -> str:
    return f", the last {_MOST_ROWS} of {rows:,}" if rows > _MOST_ROWS else ""
