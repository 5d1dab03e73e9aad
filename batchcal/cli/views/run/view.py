"""A run on the terminal: its results, curves, epochs and events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.calibration.view import hanging
from batchcal.cli.views.charts.plot_text import DrawnPlot, columns_of
from batchcal.cli.views.run import charts
from batchcal.cli.views.run.epochs import epochs_table, narrowed
from batchcal.cli.views.run.words import SeenRun, about, summary, told, where
from batchcal.core.units import count_of, format_seconds
from batchcal.train.report.run import Happening, LoggedCheckpoint, LoggedEpoch, LoggedRecovery, LoggedResize, Run

_MOST_ROWS: Final = 12


def show(seen: SeenRun) -> Iterator[RenderableType]:
    """Yield the complete view, from top to bottom."""
    run = seen.run
    line = Table.grid(expand=True)
    line.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(Text(run.started.spec, style="bold"), Text(seen.state, style="green" if seen.well else "bold yellow"))
    yield line
    for told_of_it in about(run):
        yield Text(told_of_it, style="dim")
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
    for name, answer, besides in summary(run):
        table.add_row(name, answer, besides)
    return table


class _Charts:
    """Charts as wide as the console. A wider console shows more points."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        points = columns_of(options.max_width)
        wanted = ((charts.loss, 12), (charts.task_losses, 10), (charts.memory, 12), (charts.throughput, 7))
        for chart, height in wanted:
            plot = chart(self._run, points)
            if plot is not None:
                yield Text("")
                yield DrawnPlot(plot, height=height)


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
            yield Text(f"  and {count_of(len(rows) - _MOST_ROWS, 'epoch')} before", style="dim")


def _happenings(run: Run) -> Iterator[RenderableType]:
    """Yield the events other than ended epochs and saved checkpoints."""
    found: list[Happening] = [one for one in run.happenings if not isinstance(one, LoggedEpoch | LoggedCheckpoint)]
    if not found:
        return
    yield Text("")
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column("after", justify="right", no_wrap=True, style="dim")
    table.add_column("where", no_wrap=True)
    table.add_column("what", overflow="fold")
    for one in found[-_MOST_ROWS:]:
        style = "red" if isinstance(one, LoggedRecovery) else "yellow" if isinstance(one, LoggedResize) else ""
        table.add_row(format_seconds(one.at), where(one), Text(told(one), style=style))
    yield table
    if len(found) > _MOST_ROWS:
        yield Text(f"  and {count_of(len(found) - _MOST_ROWS, 'event')} before", style="dim")
