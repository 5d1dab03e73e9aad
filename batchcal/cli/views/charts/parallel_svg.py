"""Trials as parallel coordinates in inline SVG: one axis per parameter, one line per trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from batchcal.cli.views.charts.plot import LOG_FROM, number
from batchcal.cli.views.study.words import text_of
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

    def share(self, value: object) -> float:
        """Return the position on the axis: 0 at the bottom, 1 at the top."""
        if self.choices:
            return (self.choices.index(text_of(value)) + 0.5) / len(self.choices)
        if not isinstance(value, int | float) or self.high == self.low:
            return 0.5
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ends(self) -> list[tuple[float, str]]:
        """Return the labels of the axis: (share, text)."""
        if self.choices:
            return [((place + 0.5) / len(self.choices), text) for place, text in enumerate(self.choices)]
        return [(0.0, number(float(self.low))), (1.0, number(float(self.high)))]


def draw(study: StudyStatus) -> str:
    """Return one `<svg>` element. Empty: nothing can be compared."""
    trials = [trial for trial in study.trials if trial.value is not None and trial.state in ("complete", "pruned")]
    trials = sorted(trials, key=lambda trial: study.better * (trial.value or 0.0))[-_MOST:]
    names = sorted({name for trial in trials for name in trial.parameters})
    if len(trials) < 2 or not names:
        return ""
    columns = [_column(name, [trial.parameters[name] for trial in trials if name in trial.parameters]) for name in names]
    columns.append(_column(study.metric, [trial.value for trial in trials]))
    distance = (WIDTH - 2 * _SIDE) / (len(columns) - 1)
    lines = [
        _line(trial, columns, distance, rank=place / (len(trials) - 1), best=trial is study.best())
        for place, trial in enumerate(trials)
    ]
    axes = [_axis(column, _SIDE + place * distance) for place, column in enumerate(columns)]
    return "\n".join(
        [f'<svg class="curve parallel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="trials">', *lines, *axes, "</svg>"]
    )


def _column(name: str, values: Sequence[object]) -> _Column:
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return _Column(name, 0.0, 1.0, logarithmic=False, choices=tuple(sorted({text_of(value) for value in values})))
    low, high = min(numbers), max(numbers)
    return _Column(name, low, high, logarithmic=low > 0 and high / low > LOG_FROM, choices=())


def _line(trial: TrialStatus, columns: Sequence[_Column], distance: float, *, rank: float, best: bool) -> str:
    """Return the line of a trial. `rank` goes from 0, the worst, to 1."""
    points = []
    for place, column in enumerate(columns):
        value = trial.value if place == len(columns) - 1 else trial.parameters.get(column.name)
        if value is not None:
            points.append(f"{_SIDE + place * distance:.1f},{_y(column.share(value)):.1f}")
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
