"""The memory curve as inline SVG. Colours are classes that the page's style sheet defines, light and dark."""

from __future__ import annotations

from html import escape
from typing import Final

from batchcal.cli.views.charts.memory import Curve, CurveMark, MemoryChart, ticks
from batchcal.cli.views.words import count
from batchcal.core.units import format_bytes

WIDTH: Final = 920
HEIGHT: Final = 420
_LEFT: Final = 78
_RIGHT: Final = 62
_TOP: Final = 18
_BOTTOM: Final = 46


def draw(chart: MemoryChart) -> str:
    """Return one `<svg>` element."""
    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title, quote=True)}">',
        *_grid(chart),
        *(_band(chart, curve) for curve in chart.curves),
        *_rules(chart),
        *(_line(chart, curve) for curve in chart.curves),
        *(_mark(chart, mark) for mark in sorted(chart.marks, key=lambda one: (one.is_answer, one.sequence))),
        "</svg>",
    ]
    return "\n".join(parts)


def _x(chart: MemoryChart, batch: float) -> float:
    return round(_LEFT + batch / chart.most_batch * (WIDTH - _LEFT - _RIGHT), 1)


def _y(chart: MemoryChart, size: float) -> float:
    inside = min(max(size / chart.most_bytes, 0.0), 1.0)
    return round(HEIGHT - _BOTTOM - inside * (HEIGHT - _TOP - _BOTTOM), 1)


def _grid(chart: MemoryChart) -> list[str]:
    named = [chart.budget_bytes, *([chart.limit_bytes] if chart.limit_bytes else [])]
    parts = []
    for tick in ticks(chart.most_bytes, about=6, kind="bytes"):
        y = _y(chart, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>')
        if all(abs(y - _y(chart, size)) > 14 for size in named):
            text = "0" if tick == 0 else format_bytes(tick)
            parts.append(f'<text class="tick" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{text}</text>')
    floor = HEIGHT - _BOTTOM
    for tick in ticks(chart.most_batch, about=8, kind="count"):
        x = _x(chart, tick)
        parts.append(f'<line class="axis" x1="{x}" y1="{floor}" x2="{x}" y2="{floor + 5}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{floor + 20}" text-anchor="middle">{count(tick)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{WIDTH - _RIGHT}" y2="{floor}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">batch, samples</text>')
    return parts


def _rules(chart: MemoryChart) -> list[str]:
    rules: list[tuple[str, float]] = [("budget", chart.budget_bytes)]
    if chart.limit_bytes is not None:
        rules.append(("limit", chart.limit_bytes))
    parts = []
    for name, size in rules:
        y = _y(chart, size)
        parts.append(f'<line class="rule {name}" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>')
        parts.append(f'<text class="label {name}" x="{_LEFT + 8}" y="{y - 6}">{name}</text>')
        parts.append(f'<text class="tick {name}" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{format_bytes(size)}</text>')
    return parts


def _visible(chart: MemoryChart, curve: Curve) -> list[tuple[float, float]]:
    """Return the points up to where the curve leaves the picture."""
    inside = [point for point in curve.points if point[1] <= chart.most_bytes]
    return inside or [curve.points[0]]


def _line(chart: MemoryChart, curve: Curve) -> str:
    points = _visible(chart, curve)
    path = " ".join(f"{_x(chart, batch)},{_y(chart, size)}" for batch, size in points)
    batch, size = points[-1]
    at = f'x="{_x(chart, batch) + 8}" y="{_y(chart, size) + 4}"'
    return f'<polyline class="line {curve.mode}" points="{path}"/><text class="label {curve.mode}" {at}>{curve.mode}</text>'


def _band(chart: MemoryChart, curve: Curve) -> str:
    """Band of the differences between runs of this allocator."""
    if curve.spread <= 0:
        return ""
    points = _visible(chart, curve)
    edges = []
    for sign, run in ((1, points), (-1, points[::-1])):
        edges += [
            f"{_x(chart, batch)},{_y(chart, size + sign * curve.spread * max(size - curve.base_bytes, 0.0))}"
            for batch, size in run
        ]
    return f'<polygon class="band {curve.mode}" points="{" ".join(edges)}"/>'


def _mark(chart: MemoryChart, mark: CurveMark) -> str:
    x, y = _x(chart, mark.batch), _y(chart, mark.bytes)
    title = f"<title>{escape(mark.text)}</title>"
    if mark.tone == "bad":
        cross = f"M{x - 6},{y - 6}L{x + 6},{y + 6}M{x - 6},{y + 6}L{x + 6},{y - 6}"
        return f'<g class="mark bad"><path d="{cross}"/>{title}</g>'
    if mark.is_answer:
        diamond = f"M{x},{y - 9}L{x + 9},{y}L{x},{y + 9}L{x - 9},{y}Z"
        label = f'<text class="answer" x="{x - 8}" y="{y - 12}" text-anchor="end">{count(mark.batch)}</text>'
        return f'<g class="mark answer"><path d="{diamond}"/>{label}{title}</g>'
    return f'<g class="mark {mark.tone} {mark.mode}"><circle cx="{x}" cy="{y}" r="5.5"/>{title}</g>'
