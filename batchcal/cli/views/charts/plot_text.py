"""A chart in characters, as wide as allowed."""

from __future__ import annotations

from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from batchcal.cli.views.charts.canvas import Canvas
from batchcal.cli.views.charts.plot import MarkKind, Plot, Series, Shape

LABEL_WIDTH: Final = 9
MOST_WIDTH: Final = 110
COLOURS: Final = ("cyan", "magenta", "green", "bright_black", "yellow", "blue")
_MARKS: Final[dict[MarkKind, tuple[str, str, str, str]]] = {
    "recovered": ("✗", "x", "bold red", "ran out of memory"),
    "smaller": ("▼", "v", "bold yellow", "smaller"),
    "larger": ("▲", "^", "bold green", "larger"),
    "not-finite": ("!", "!", "bold red", "NaN or infinite"),
    "result": ("◆", "#", "bold green", "result"),
    "fastest": ("◆", "#", "bold green", "fastest"),
    "fits": ("●", "o", "green", "fits"),
    "evaluated": ("○", "e", "green", "evaluation fits"),
    "too-large": ("✗", "x", "bold red", "too large"),
    "inconclusive": ("?", "?", "yellow", "inconclusive"),
}
"""Character, the same in ASCII, style, meaning."""
_SIGNS: Final[dict[Shape, tuple[str, str]]] = {"line": ("⠒⠒", ".."), "dashes": ("⠒ ⠒", ". ."), "dots": ("●", "o")}
"""Sign of a line in the legend, and the same in ASCII."""


class PlotText:
    """A chart that is drawn when it is printed."""

    def __init__(self, plot: Plot, *, height: int) -> None:
        self._plot, self._height = plot, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, MOST_WIDTH)
        yield from draw(self._plot, width=width, height=self._height, ascii_only=options.ascii_only)


def columns_of(width: int) -> int:
    """Return the number of points that a curve can show in `width` characters: two per character."""
    return max(min(width, MOST_WIDTH) - LABEL_WIDTH - 3, 20) * 2


def draw(plot: Plot, *, width: int, height: int, ascii_only: bool = False) -> list[Text]:
    """Return lines of at most `width` characters: a title, `height` rows, the axis, the legend."""
    canvas = Canvas(max(width - LABEL_WIDTH - 3, 20), height, ascii_only=ascii_only)
    for series in plot.series:
        if series.ranges:
            _extremes(canvas, plot, series)
    for series in plot.series:
        if series.shape != "dots":
            line = [(plot.x.share(point.x), plot.y.share(point.y)) for point in series.points]
            canvas.line(line, _style(series), dashed=series.shape == "dashes")
    dash = "-" if ascii_only else "╌"
    for rule in plot.rules:
        canvas.rule(plot.y.share(rule.y), "red" if rule.name == "limit" else "yellow", dash, rule.name)
    for series in plot.series:
        if series.shape == "dots":
            for point in series.points:
                canvas.mark(plot.x.share(point.x), plot.y.share(point.y), "o" if ascii_only else "●", _style(series))
    for mark in plot.marks:
        character, plain, style, _ = _MARKS[mark.kind]
        canvas.mark(plot.x.share(mark.x), plot.y.share(mark.y), plain if ascii_only else character, style)
    labels = _labels(plot, height)
    edge, bar, corner, floor = ("|", "|", "+", "-") if ascii_only else ("┤", "│", "└", "─")
    lines = [Text(f"  {plot.title}", style="bold", no_wrap=True)]
    for index, row in enumerate(canvas.rows()):
        label, style = labels.get(index, ("", "dim"))
        lines.append(Text.assemble((label.rjust(LABEL_WIDTH), style), " ", (edge if label else bar, "dim"), row, no_wrap=True))
    lines.append(Text(" " * (LABEL_WIDTH + 1) + corner + floor * canvas.width, style="dim", no_wrap=True))
    lines.append(Text(_axis(plot, canvas.width), style="dim", no_wrap=True))
    return [*lines, *_legend(plot, width=width, ascii_only=ascii_only)]


def _extremes(canvas: Canvas, plot: Plot, series: Series) -> None:
    """Draw lines from the lowest to the highest step of each point, behind the line of their means."""
    style = f"dim {_style(series)}"
    for point in series.points:
        if point.low < point.high:
            x = plot.x.share(point.x)
            canvas.line([(x, plot.y.share(point.low)), (x, plot.y.share(point.high))], style)


def _style(series: Series) -> str:
    return COLOURS[series.colour % len(COLOURS)]


def _labels(plot: Plot, height: int) -> dict[int, tuple[str, str]]:
    """Return labels by row from the top. Rules have labels; ticks next to them are left out."""
    labels: dict[int, tuple[str, str]] = {}

    def row_of(value: float) -> int:
        return min(max(round((1 - plot.y.share(value)) * (height - 1)), 0), height - 1)

    for rule in plot.rules:
        labels.setdefault(row_of(rule.y), (plot.y.text(rule.y), "red" if rule.name == "limit" else "yellow"))
    named = set(labels)
    for tick, text in plot.y.labels(max(height // 2, 2)):
        row = row_of(tick)
        if row not in labels and not named & {row - 1, row, row + 1}:
            labels[row] = (text, "dim")
    return labels


def _axis(plot: Plot, width: int) -> str:
    line = [" "] * (LABEL_WIDTH + 2 + width)
    free_from = 0
    for tick, text in plot.x.labels(8):
        start = LABEL_WIDTH + 2 + round(plot.x.share(tick) * (width - 1)) - len(text) // 2
        if start < free_from or start + len(text) > len(line):
            continue  # a label that is moved or cut would belong to another value
        line[start : start + len(text)] = text
        free_from = start + len(text) + 1
    return "".join(line).rstrip()


def _legend(plot: Plot, *, width: int, ascii_only: bool) -> list[Text]:
    """Return the legend in lines of at most `width` characters. A single line needs no entry, because the title names it."""
    entries: list[Text] = []
    if len(plot.series) > 1:
        for series in plot.series:
            entries.append(Text.assemble((_SIGNS[series.shape][ascii_only], _style(series)), f" {series.name}"))
    for kind in dict.fromkeys(mark.kind for mark in plot.marks):
        character, plain, style, meaning = _MARKS[kind]
        entries.append(Text.assemble((plain if ascii_only else character, style), f" {meaning}"))
    lines: list[Text] = []
    for entry in entries:
        if not lines or lines[-1].cell_len + 2 + entry.cell_len > width:
            lines.append(Text(" " * LABEL_WIDTH, no_wrap=True, overflow="ellipsis"))
        lines[-1].append("  ").append_text(entry)
    return lines
