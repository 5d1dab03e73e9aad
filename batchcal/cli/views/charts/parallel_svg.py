"""Trials as parallel coordinates in inline SVG: one axis per parameter, one line per trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from batchcal.cli.views.charts.plot import LOG_FROM, number
from batchcal.cli.views.study.words import value as text_of
from batchcal.hpo.study_status import StudyStatus, TrialStatus

WIDTH: Final = 920
HEIGHT: Final = 340
_MOST: Final = 300
"""Most lines. Of more trials, the best are drawn."""
_SIDE: Final = 60
_TOP: Final = 36
_BOTTOM: Final = 30
_LEVELS: Final = 5
"""Number of shades, from the worst to the best."""


@dataclass(frozen=True)
class _Column:
    """One axis."""

    name: str
    low: float
    high: float
    logarithmic: bool
    choices: tuple[str, ...]
    """Values that are not numbers. Empty: the values are numbers."""

    def share(self, one: object) -> float:
        """Return the position on the axis: 0 at the bottom, 1 at the top."""
        if self.choices:
            return (self.choices.index(text_of(one)) + 0.5) / len(self.choices)
        if not isinstance(one, int | float) or self.high == self.low:
            return 0.5
        if self.logarithmic:
            return math.log(one / self.low) / math.log(self.high / self.low)
        return (one - self.low) / (self.high - self.low)

    def ends(self) -> list[tuple[float, str]]:
        """Return the labels of the axis: (share, text)."""
        if self.choices:
            return [((place + 0.5) / len(self.choices), text) for place, text in enumerate(self.choices)]
        return [(0.0, number(float(self.low))), (1.0, number(float(self.high)))]


def draw(seen: StudyStatus) -> str:
    """Return one `<svg>` element. Empty: nothing can be compared."""
    trials = [one for one in seen.trials if one.value is not None and one.state in ("complete", "pruned")]
    trials = sorted(trials, key=lambda one: seen.better * (one.value or 0.0))[-_MOST:]
    names = sorted({name for one in trials for name in one.parameters})
    if len(trials) < 2 or not names:
        return ""
    columns = [_column(name, [one.parameters[name] for one in trials if name in one.parameters]) for name in names]
    columns.append(_column(seen.metric, [one.value for one in trials]))
    apart = (WIDTH - 2 * _SIDE) / (len(columns) - 1)
    lines = [
        _line(one, columns, apart, rank=place / (len(trials) - 1), best=one is seen.best()) for place, one in enumerate(trials)
    ]
    axes = [_axis(column, _SIDE + place * apart) for place, column in enumerate(columns)]
    return "\n".join(
        [f'<svg class="curve parallel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="trials">', *lines, *axes, "</svg>"]
    )


def _column(name: str, values: Sequence[object]) -> _Column:
    numbers = [float(one) for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) < len(values):
        return _Column(name, 0.0, 1.0, logarithmic=False, choices=tuple(sorted({text_of(one) for one in values})))
    low, high = min(numbers), max(numbers)
    return _Column(name, low, high, logarithmic=low > 0 and high / low > LOG_FROM, choices=())


def _line(trial: TrialStatus, columns: Sequence[_Column], apart: float, *, rank: float, best: bool) -> str:
    """Return the line of a trial. `rank` goes from 0, the worst, to 1."""
    points = []
    for place, column in enumerate(columns):
        one = trial.value if place == len(columns) - 1 else trial.parameters.get(column.name)
        if one is not None:
            points.append(f"{_SIDE + place * apart:.1f},{_y(column.share(one)):.1f}")
    level = "best" if best else f"l{min(int(rank * _LEVELS), _LEVELS - 1)}"
    title = f"trial {trial.number}: {number(trial.value or 0.0)}"
    return f'<polyline class="trial {level}" points="{" ".join(points)}"><title>{escape(title)}</title></polyline>'


def _axis(column: _Column, x: float) -> str:
    parts = [
        f'<line class="axis" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{HEIGHT - _BOTTOM}"/>',
        f'<text class="label" x="{x:.1f}" y="{_TOP - 16}" text-anchor="middle">{escape(column.name)}</text>',
    ]
    for share, text in column.ends():
        shown = text if len(text) <= 14 else f"{text[:13]}…"
        parts.append(f'<text class="tick" x="{x + 6:.1f}" y="{_y(share) + 4:.1f}">{escape(shown)}</text>')
    return "".join(parts)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - _TOP - _BOTTOM)
