"""A run on the terminal: its results, curves, epochs and events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.calibration.view import hanging
from batchcal.cli.views.charts.plot_text import PlotText, columns_of
from batchcal.cli.views.run import charts
from batchcal.cli.views.run.epochs import epochs_table, narrowed
from batchcal.cli.views.run.words import ShownRun, about, description, position_of, summary
from batchcal.core.units import count_of, format_seconds
from batchcal.train.report.run import Happening, LoggedCheckpoint, LoggedEpoch, LoggedRecovery, LoggedResize, Run

_MOST_ROWS: Final = 12


def show(shown: ShownRun) -> Iterator[RenderableType]:
    """Yield the complete view, from top to bottom."""
    run = shown.run
    line = Table.grid(expand=True)
    line.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(Text(run.started.spec, style="bold"), Text(shown.state, style="green" if shown.succeeded else "bold yellow"))
    yield line
    for text in about(run):
        yield Text(text, style="dim")
    yield Text("")
    yield _summary(run)
    yield _Charts(run)
    if run.epochs:
        yield Text("")
        yield _Epochs(run)
    yield from _happenings(run)
    if run.remarks:
        yield Text("")
    for remark in run.remarks:
        yield hanging("  - ", remark, style="dim")
    yield Text("")
    yield Text(f"  {run.path}", style="dim", overflow="fold")


def _summary(run: Run) -> Table:
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim")
    for name, answer, remark in summary(run):
        table.add_row(name, answer, remark)
    return table


class _Charts:
    """Charts as wide as the console. A wider console shows more points."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        points = columns_of(options.max_width)
        heights = ((charts.loss, 12), (charts.task_losses, 10), (charts.memory, 12), (charts.throughput, 7))
        for chart, height in heights:
            plot = chart(self._run, points)
            if plot is not None:
                yield Text("")
                yield PlotText(plot, height=height)


class _Epochs:
    """One row per epoch, of many the last ones. A narrow console shows fewer columns, but no truncated numbers."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads, rows = epochs_table(self._run)
        heads, shown = narrowed(heads, rows[-_MOST_ROWS:], width=options.max_width)
        table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        for row in shown:
            table.add_row(*row)
        yield table
        if len(rows) > _MOST_ROWS:
            yield Text(f"  and {count_of(len(rows) - _MOST_ROWS, 'earlier epoch')}", style="dim")


def _happenings(run: Run) -> Iterator[RenderableType]:
    """Yield the events other than ended epochs and saved checkpoints."""
    events: list[Happening] = [event for event in run.happenings if not isinstance(event, LoggedEpoch | LoggedCheckpoint)]
    if not events:
        return
    yield Text("")
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column("time", justify="right", no_wrap=True, style="dim")
    table.add_column("position", no_wrap=True)
    table.add_column("event", overflow="fold")
    for event in events[-_MOST_ROWS:]:
        style = "red" if isinstance(event, LoggedRecovery) else "yellow" if isinstance(event, LoggedResize) else ""
        table.add_row(format_seconds(event.at), position_of(event), Text(description(event), style=style))
    yield table
    if len(events) > _MOST_ROWS:
        yield Text(f"  and {count_of(len(events) - _MOST_ROWS, 'earlier event')}", style="dim")
