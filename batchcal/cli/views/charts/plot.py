"""A chart as values, to be drawn in characters or as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from batchcal.cli.views.words import count
from batchcal.core.units import format_bytes

Unit = Literal["bytes", "count", "number"]
Shape = Literal["line", "dots", "dashes"]
MarkKind = Literal[
    "recovered", "smaller", "larger", "not-finite", "result", "fastest", "fits", "evaluated", "too-large", "inconclusive"
]
"""The first four are events of a run, the others are probes of a calibration."""

LOG_FROM: Final = 30.0
"""Ratio of the largest to the smallest value above which positive values get a logarithmic axis."""
_BEYOND: Final = 0.08
"""Extension of an axis beyond the values shown, as a share of them."""
_MOST: Final = 1e300
"""Largest value shown. Twice that is still finite."""


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    unit: Unit
    logarithmic: bool = False
    values: tuple[float, ...] = ()
    """Values that have ticks. Empty: round values."""

    def share(self, value: float) -> float:
        """Return the position of a value: 0 at the low end and below, 1 at the high end and above."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self, about: int) -> tuple[float, ...]:
        """Return `values`, or round values inside the axis: 1, 2 or 5 times a power of ten, for bytes a power of two."""
        if self.values:
            return self.values
        if self.logarithmic:
            return self._decades(about)
        raw = (self.high - self.low) / max(about, 1)
        if self.unit == "bytes":
            step = 2.0 ** math.ceil(math.log2(raw))
        else:
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
            step = max(step, 1.0) if self.unit == "count" else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(step * place for place in range(first, last + 1))

    def labels(self, about: int) -> tuple[tuple[float, str], ...]:
        """Return the ticks with their labels. No two labels are equal."""
        by_text = {self.text(value): value for value in reversed(self.ticks(about))}
        return tuple((value, text) for text, value in reversed(by_text.items()))

    def _decades(self, about: int) -> tuple[float, ...]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        choices = [[factor * 10.0**power for power in powers for factor in factors] for factors in ((1, 2, 5), (1, 3), (1,))]
        inside = [tuple(value for value in values if self.low <= value <= self.high) for values in choices]
        few = [values for values in inside if len(values) <= about]
        return few[0] if few else inside[-1][:: math.ceil(len(inside[-1]) / about)]

    def text(self, value: float) -> str:
        """Return the label of a tick."""
        if value == 0:
            return "0"
        if self.unit == "bytes":
            return format_bytes(value)
        return count(value) if self.unit == "count" else number(value)


@dataclass(frozen=True)
class Point:
    x: float
    low: float
    y: float
    high: float


@dataclass(frozen=True)
class Series:
    name: str
    """Empty: the series needs no label."""
    colour: int
    """Index of the colour. The same quantity has the same colour in all charts."""
    points: tuple[Point, ...]
    shape: Shape = "line"
    ranges: bool = True
    """True: each point shows its range. False: the ranges are shown only where they can be drawn as a transparent band."""


@dataclass(frozen=True)
class Rule:
    """A horizontal line for the budget or the limit."""

    name: Literal["budget", "limit"]
    y: float


@dataclass(frozen=True)
class PlotMark:
    """An event of a run, or a probe."""

    kind: MarkKind
    x: float
    y: float
    text: str
    """Explanation, shown on a page when the pointer is over the mark."""
    label: str = ""
    """Text beside the mark."""


@dataclass(frozen=True)
class Plot:
    title: str
    x: Axis
    x_name: str
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    marks: tuple[PlotMark, ...] = ()
    verticals: tuple[float, ...] = ()
    """Positions on the x axis at which epochs begin."""


def axis_over(values: Iterable[float], unit: Unit, *, from_zero: bool = True, may_be_log: bool = False) -> Axis:
    """Return an axis that contains all `values`. Its length is never 0."""
    finite = [min(max(value, -_MOST), _MOST) for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if may_be_log and low > 0 and high / low > LOG_FROM:
        return Axis(low / (1 + _BEYOND), high * (1 + _BEYOND), unit, logarithmic=True)
    # Values that hardly change are enlarged, unless zero has a meaning.
    low = min(low, 0.0) if from_zero or low < high / 2 else low
    span = (high - low) or abs(high) or 1.0
    low = low if low == 0 else low - span * _BEYOND
    return Axis(low, high + span * _BEYOND, unit)


def number(value: float) -> str:
    """Return `0.2531`, `1,530`, `3e-05`: four significant digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e7 else f"{value:.4g}"
