"""A chart as inline SVG. Colours are classes that the page's style sheet defines, light and dark."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from batchcal.cli.views.charts.plot import MarkKind, Plot, PlotMark, Point, Rule, Series

COLOURS: Final = 6
POINTS: Final = 300
"""Most points of a curve. More cannot be distinguished."""
_LEFT: Final = 78
_TOP: Final = 18
_BOTTOM: Final = 46
_LABEL_HEIGHT: Final = 17.0
_MANY: Final = 40
"""More dots than this are drawn as a cloud, more marks are drawn smaller."""
_EVENTS: Final[frozenset[MarkKind]] = frozenset({"recovered", "smaller", "larger", "not-finite"})
_CIRCLES: Final[frozenset[MarkKind]] = frozenset({"fits", "evaluated", "inconclusive"})
_CHARACTER: Final = 7.5
"""Approximate width of a character, pixels."""


@dataclass(frozen=True)
class _Frame:
    plot: Plot
    width: int
    height: int
    right: float
    """Width of the space for the names of the lines, pixels."""

    def x(self, value: float) -> float:
        return round(_LEFT + self.plot.x.share(value) * (self.width - _LEFT - self.right), 1)

    def y(self, value: float) -> float:
        inside = min(max(self.plot.y.share(value), 0.0), 1.0)
        return round(self.height - _BOTTOM - inside * (self.height - _TOP - _BOTTOM), 1)

    @property
    def floor(self) -> int:
        return self.height - _BOTTOM

    @property
    def end(self) -> float:
        return self.width - self.right


def draw(plot: Plot, *, width: int = 920, height: int = 320, kind: str = "") -> str:
    """Return one `<svg>` element. `kind` is a further class of it."""
    named = [series for series in plot.series if series.name] if len(plot.series) > 1 else []
    right = max([16.0, *(len(series.name) * _CHARACTER + 20 for series in named)])
    frame = _Frame(plot, width, height, min(right, width / 4))
    ends = _apart([frame.y(series.points[-1].y) for series in named], frame.floor)
    parts = [
        f'<svg class="{f"curve {kind}".rstrip()}" viewBox="0 0 {width} {height}" role="img"',
        f' aria-label="{escape(plot.title, quote=True)}">',
        *_grid(frame),
        *(_band(frame, series) for series in plot.series),
        *(_rule(frame, rule) for rule in plot.rules),
        *(_curve(frame, series) for series in plot.series),
        *(_name(frame, series, y) for series, y in zip(named, ends, strict=True)),
        *(_mark(frame, mark, few=len(plot.marks) <= _MANY) for mark in plot.marks),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def _grid(frame: _Frame) -> list[str]:
    plot, floor = frame.plot, frame.floor
    parts = []
    rules = [frame.y(rule.y) for rule in plot.rules]
    for tick, text in plot.y.labels(max(frame.height // 55, 3)):
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{frame.end}" y2="{y}"/>')
        if all(abs(y - rule) > 14 for rule in rules):
            parts.append(f'<text class="tick" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{text}</text>')
    parts += [
        f'<line class="epoch" x1="{frame.x(place)}" y1="{_TOP}" x2="{frame.x(place)}" y2="{floor}"/>' for place in plot.verticals
    ]
    free_from = 0.0
    for tick, text in plot.x.labels(max(frame.width // 110, 3)):
        x, half = frame.x(tick), len(text) * _CHARACTER / 2
        parts.append(f'<line class="axis" x1="{x}" y1="{floor}" x2="{x}" y2="{floor + 5}"/>')
        if x - half >= free_from:
            parts.append(f'<text class="tick" x="{x}" y="{floor + 20}" text-anchor="middle">{text}</text>')
            free_from = x + half + _CHARACTER
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{frame.end}" y2="{floor}"/>')
    middle = (_LEFT + frame.end) / 2
    parts.append(f'<text class="name" x="{middle}" y="{frame.height - 6}" text-anchor="middle">{escape(plot.x_name)}</text>')
    return parts


def _rule(frame: _Frame, rule: Rule) -> str:
    y = frame.y(rule.y)
    return (
        f'<line class="rule {rule.name}" x1="{_LEFT}" y1="{y}" x2="{frame.end}" y2="{y}"/>'
        f'<text class="label {rule.name}" x="{_LEFT + 8}" y="{y - 6}">{rule.name}</text>'
        f'<text class="tick {rule.name}" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{frame.plot.y.text(rule.y)}</text>'
    )


def _band(frame: _Frame, series: Series) -> str:
    """Return a band from the lowest to the highest step of each point."""
    if series.shape != "line" or all(point.low == point.high for point in series.points):
        return ""
    upper = [f"{frame.x(point.x)},{frame.y(point.high)}" for point in series.points]
    lower = [f"{frame.x(point.x)},{frame.y(point.low)}" for point in reversed(series.points)]
    return f'<polygon class="extremes s{series.colour % COLOURS}" points="{" ".join([*upper, *lower])}"/>'


def _curve(frame: _Frame, series: Series) -> str:
    kind = f"s{series.colour % COLOURS}"
    if series.shape == "dots":
        dots = "".join(f'<circle cx="{frame.x(point.x)}" cy="{frame.y(point.y)}" r="3.5"/>' for point in series.points)
        return f'<g class="dots{" many" if len(series.points) > _MANY else ""} {kind}">{dots}</g>'
    return f'<polyline class="run {series.shape} {kind}" points="{_path(frame, series.points)}"/>'


def _path(frame: _Frame, points: Sequence[Point]) -> str:
    return " ".join(f"{frame.x(point.x)},{frame.y(point.y)}" for point in points)


def _name(frame: _Frame, series: Series, y: float) -> str:
    return (
        f'<text class="label s{series.colour % COLOURS}" x="{frame.end + 10}" y="{round(y + 4, 1)}">{escape(series.name)}</text>'
    )


def _mark(frame: _Frame, mark: PlotMark, *, few: bool) -> str:
    """Return a mark. If there are many, it is smaller, and an event of a run has no line to its step."""
    x, y, r = frame.x(mark.x), frame.y(mark.y), 6 if few else 4.5
    inside = f"<title>{escape(mark.text)}</title>"
    if few and mark.kind in _EVENTS:
        inside += f'<line class="moment" x1="{x}" y1="{_TOP}" x2="{x}" y2="{frame.floor}"/>'
    if mark.label:
        # At the left end, the label is on the right, where it does not cover the labels of the axis.
        side, anchor = (8, "start") if x - len(mark.label) * _CHARACTER * 1.3 < _LEFT else (-8, "end")
        place = f'x="{round(x + side, 1)}" y="{round(y - 12, 1)}" text-anchor="{anchor}"'
        inside += f'<text class="value" {place}>{escape(mark.label)}</text>'
    shape = (
        f'<circle cx="{x}" cy="{y}" r="{r - 0.5}"/>' if mark.kind in _CIRCLES else f'<path d="{_outline(mark.kind, x, y, r)}"/>'
    )
    return f'<g class="mark {mark.kind}{"" if few else " small"}">{inside}{shape}</g>'


def _outline(kind: MarkKind, x: float, y: float, r: float) -> str:
    """Return the path of a triangle, a diamond or a cross."""
    left, right, above, below = round(x - r, 1), round(x + r, 1), round(y - r, 1), round(y + r, 1)
    match kind:
        case "smaller":
            return f"M{left},{above}L{right},{above}L{x},{below}Z"
        case "larger":
            return f"M{left},{below}L{right},{below}L{x},{above}Z"
        case "result" | "fastest":
            return f"M{x},{round(above - 3, 1)}L{round(right + 3, 1)},{y}L{x},{round(below + 3, 1)}L{round(left - 3, 1)},{y}Z"
        case _:
            return f"M{left},{above}L{right},{below}M{left},{below}L{right},{above}"


SIGNS: Final[dict[MarkKind, tuple[str, str]]] = {
    "recovered": ("✕", "ran out of memory and continued"),
    "smaller": ("▼", "smaller micro-batch"),
    "larger": ("▲", "larger micro-batch"),
    "not-finite": ("✕", "NaN or infinite"),
    "result": ("◆", "result"),
    "fastest": ("◆", "fastest"),
    "fits": ("●", "fits"),
    "evaluated": ("○", "evaluation fits"),
    "too-large": ("✕", "too large"),
    "inconclusive": ("◌", "inconclusive"),
}
"""Sign of each kind of mark in the legend of a page, and its meaning."""


def legend(plot: Plot) -> tuple[tuple[MarkKind, str, str], ...]:
    """Return kind, sign and meaning of each kind of mark in the chart."""
    return tuple((kind, *SIGNS[kind]) for kind in dict.fromkeys(mark.kind for mark in plot.marks))


def _apart(heights: list[float], floor: float) -> list[float]:
    """Return the heights, moved so that no two names overlap and no name is below `floor`."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    placed = list(heights)
    for before, place in itertools.pairwise(order):
        placed[place] = max(placed[place], placed[before] + _LABEL_HEIGHT)
    lowest = floor
    for place in reversed(order):
        placed[place] = min(placed[place], lowest)
        lowest = placed[place] - _LABEL_HEIGHT
    return placed
