"""Throughput against micro-batch as inline SVG, one line per allocator policy. Colours are classes of the style sheet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from batchcal.calibration.records.speed import Speeds
from batchcal.calibration.schema import Calibration
from batchcal.cli.views.charts.memory import ticks
from batchcal.cli.views.words import count

WIDTH: Final = 920
HEIGHT: Final = 340
COLOURS: Final = 6
"""Number of colours. More lines share colours; their labels distinguish them."""
_LEFT: Final = 78
_RIGHT: Final = 110
_TOP: Final = 18
_BOTTOM: Final = 46
_ABOVE: Final = 1.12
_LABEL_HEIGHT: Final = 17.0


@dataclass(frozen=True)
class _Axes:
    least_batch: int
    most_batch: int
    most_rate: float

    def x(self, batch: float) -> float:
        """Return the x coordinate. Doublings are evenly spaced."""
        span = math.log2(self.most_batch / self.least_batch) or 1.0
        return round(_LEFT + math.log2(batch / self.least_batch) / span * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, rate: float) -> float:
        return round(HEIGHT - _BOTTOM - rate / self.most_rate * (HEIGHT - _TOP - _BOTTOM), 1)


def draw(calibration: Calibration) -> str:
    """Return one `<svg>` element. Empty: no sizes were timed on the chosen device."""
    raced = [one for one in calibration.speeds if one.device == calibration.chosen_device and one.times]
    if not raced:
        return ""
    sizes = sorted({time.micro_batch for one in raced for time in one.times})
    highest = max(time.samples_per_s(time.micro_batch) for one in raced for time in one.times)
    axes = _Axes(sizes[0], sizes[-1], highest * _ABOVE)
    chosen = next((one for one in raced if one.allocator == calibration.policy), None)
    ends = _apart([axes.y(_rates(one)[-1][1]) for one in raced])
    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="samples per second against micro-batch">',
        *_grid(axes, sizes),
        *(_line(axes, one, place % COLOURS, label_y) for place, (one, label_y) in enumerate(zip(raced, ends, strict=True))),
        *([] if chosen is None else _answer(axes, chosen)),
        "</svg>",
    ]
    return "\n".join(parts)


def _rates(speeds: Speeds) -> list[tuple[int, float]]:
    return [(time.micro_batch, time.samples_per_s(time.micro_batch)) for time in speeds.times]


def _grid(axes: _Axes, sizes: Sequence[int]) -> list[str]:
    floor = HEIGHT - _BOTTOM
    parts = []
    for tick in ticks(axes.most_rate, about=5, kind="count"):
        y = axes.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{count(tick)}</text>')
    for size in sizes:
        x = axes.x(size)
        parts.append(f'<line class="axis" x1="{x}" y1="{floor}" x2="{x}" y2="{floor + 5}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{floor + 20}" text-anchor="middle">{count(size)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{WIDTH - _RIGHT}" y2="{floor}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">micro-batch, samples</text>')
    parts.append(f'<text class="name" x="{_LEFT + 8}" y="{_TOP}">samples/s</text>')
    return parts


def _line(axes: _Axes, speeds: Speeds, colour: int, label_y: float) -> str:
    rates = _rates(speeds)
    path = " ".join(f"{axes.x(batch)},{axes.y(rate)}" for batch, rate in rates)
    dots = "".join(
        f'<circle cx="{axes.x(batch)}" cy="{axes.y(rate)}" r="4"><title>'
        f"{escape(speeds.allocator)}, {count(batch)}: {count(rate)} samples/s</title></circle>"
        for batch, rate in rates
    )
    # No other turn was better than the measured rate. The bar shows how much worse other turns were, as a measure of trust.
    bars = "".join(
        f'<line class="doubt" x1="{axes.x(batch)}" y1="{axes.y(rate)}" x2="{axes.x(batch)}" '
        f'y2="{axes.y(rate / (1 + (speeds.spread or 0.0)))}"/>'
        for batch, rate in rates
    )
    name = f'<text class="label" x="{axes.x(rates[-1][0]) + 10}" y="{label_y + 4}">{escape(speeds.allocator)}</text>'
    return f'<g class="speed s{colour}"><polyline points="{path}"/>{bars}{dots}{name}</g>'


def _answer(axes: _Axes, speeds: Speeds) -> list[str]:
    batch, rate = max(_rates(speeds), key=lambda pair: pair[1])
    x, y = axes.x(batch), axes.y(rate)
    diamond = f"M{x},{y - 9}L{x + 9},{y}L{x},{y + 9}L{x - 9},{y}Z"
    return [
        f'<g class="mark answer"><path d="{diamond}"/>'
        f'<text class="answer" x="{x}" y="{y - 14}" text-anchor="middle">{count(rate)}</text></g>'
    ]


def _apart(heights: list[float]) -> list[float]:
    """Return the heights, moved so that no two labels overlap."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    placed = list(heights)
    for before, place in itertools.pairwise(order):
        placed[place] = max(placed[place], placed[before] + _LABEL_HEIGHT)
    return placed
