"""The memory curve in characters: the fitted line, the budget, the probes that ran and those that ran out of memory."""

from __future__ import annotations

from typing import Final

from rich.text import Text

from batchcal.cli.views.charts.canvas import Canvas
from batchcal.cli.views.charts.memory import MemoryChart, ticks
from batchcal.cli.views.words import Tone, count
from batchcal.core.units import format_bytes

HEIGHT: Final = 14
LABEL_WIDTH: Final = 9
_STYLES: Final[dict[Tone, str]] = {"good": "green", "bad": "bold red", "odd": "yellow"}
_LINE: Final = {"train": "cyan", "eval": "bright_black"}


def draw(chart: MemoryChart, *, width: int, ascii_only: bool = False) -> list[Text]:
    """Return lines of at most `width` characters."""
    canvas = Canvas(max(width - LABEL_WIDTH - 3, 20), HEIGHT, ascii_only=ascii_only)
    dash, ran, answer, failed, odd = ("-", "o", "#", "x", "?") if ascii_only else ("╌", "●", "◆", "✗", "?")
    for curve in reversed(chart.curves):
        canvas.line([(batch / chart.most_batch, size / chart.most_bytes) for batch, size in curve.points], _LINE[curve.mode])
    canvas.rule(chart.budget_bytes / chart.most_bytes, "yellow", dash, "budget")
    if chart.limit_bytes is not None:
        canvas.rule(chart.limit_bytes / chart.most_bytes, "red", dash, "limit")
    for mark in sorted(chart.marks, key=lambda one: (one.is_answer, one.sequence)):
        character = answer if mark.is_answer else {"good": ran, "bad": failed, "odd": odd}[mark.tone]
        style = "bold green" if mark.is_answer else _STYLES[mark.tone]
        canvas.mark(mark.batch / chart.most_batch, mark.bytes / chart.most_bytes, character, style)
    rows = canvas.rows()
    labels = _labels(chart)
    edge, corner, floor = ("|", "+", "-") if ascii_only else ("┤", "└", "─")
    bar = "|" if ascii_only else "│"
    lines = [Text(f"  {chart.title}", style="bold", no_wrap=True)]
    for index, row in enumerate(rows):
        label, style = labels.get(index, ("", "dim"))
        lines.append(Text.assemble((label.rjust(LABEL_WIDTH), style), " ", (edge if label else bar, "dim"), row, no_wrap=True))
    lines.append(Text(" " * (LABEL_WIDTH + 1) + corner + floor * canvas.width, style="dim", no_wrap=True))
    lines.append(Text(_axis(chart, canvas.width), style="dim", no_wrap=True))
    lines.append(_legend(chart, ran, answer, failed, "." if ascii_only else "⠒"))
    return lines


def _labels(chart: MemoryChart) -> dict[int, tuple[str, str]]:
    """Return labels by row from the top. The budget and the limit have labels; ticks next to them are left out."""
    labels: dict[int, tuple[str, str]] = {}

    def row_of(size: float) -> int:
        return min(max(round((1 - size / chart.most_bytes) * (HEIGHT - 1)), 0), HEIGHT - 1)

    labels[row_of(chart.budget_bytes)] = (format_bytes(chart.budget_bytes), "yellow")
    if chart.limit_bytes is not None:
        labels.setdefault(row_of(chart.limit_bytes), (format_bytes(chart.limit_bytes), "red"))
    for tick in ticks(chart.most_bytes, about=5, kind="bytes"):
        row = row_of(tick)
        if not any(near in labels for near in (row - 1, row, row + 1)):
            labels[row] = ("0" if tick == 0 else format_bytes(tick), "dim")
    return labels


def _axis(chart: MemoryChart, width: int) -> str:
    line = [" "] * (LABEL_WIDTH + 2 + width)
    free_from = 0
    for tick in ticks(chart.most_batch, about=8, kind="count"):
        text = count(tick)
        centre = LABEL_WIDTH + 2 + round(tick / chart.most_batch * (width - 1))
        start = max(centre - len(text) // 2, free_from)
        if start + len(text) > len(line):
            break
        line[start : start + len(text)] = text
        free_from = start + len(text) + 1
    return "".join(line).rstrip()


def _legend(chart: MemoryChart, ran: str, answer: str, failed: str, line: str) -> Text:
    parts: list[str | tuple[str, str]] = [" " * (LABEL_WIDTH + 2), (answer, "bold green"), " answer  ", (ran, "green"), " ran"]
    if any(mark.tone == "bad" for mark in chart.marks):
        parts += ["  ", (failed, "bold red"), " too much"]
    if any(mark.tone == "odd" for mark in chart.marks):
        parts += ["  ", ("?", "yellow"), " told nothing"]
    for curve in chart.curves:
        parts += ["  ", (line * 2, _LINE[curve.mode]), f" {curve.mode}"]
    return Text.assemble(*parts, no_wrap=True)
