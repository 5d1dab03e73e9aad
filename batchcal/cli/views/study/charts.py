"""Charts of a study."""

from __future__ import annotations

import math
from typing import Final

from batchcal.cli.views.charts.plot import Plot, Point, Series, Shape, axis_over
from batchcal.hpo.study_status import StudyStatus, TrialStatus

MOST_CURVES: Final = 150
"""Most curves of a chart. Of more, the latest are drawn."""
_BEST, _COMPLETE, _PRUNED = 0, 1, 3
"""Colours."""


def best_over_time(study: StudyStatus) -> Plot | None:
    """Value of each trial at its end, and the best value so far, by the number of ended trials."""
    trials = [trial for trial in study.trials if trial.state in ("complete", "pruned")]
    trials = [trial for trial in trials if trial.ended is not None and trial.value is not None]
    ended = sorted(trials, key=lambda trial: str(trial.ended))
    if not ended:
        return None
    best: list[Point] = []
    dots: dict[bool, list[Point]] = {True: [], False: []}
    for place, trial in enumerate(ended, 1):
        value = trial.value or 0.0
        dots[trial.state == "complete"].append(Point(place, value, value, value))
        if trial.state == "complete" and (not best or study.better * value > study.better * best[-1].y):
            best += [Point(place, best[-1].y, best[-1].y, best[-1].y)] if best else []
            best.append(Point(place, value, value, value))
    if best:
        best.append(Point(len(ended), best[-1].y, best[-1].y, best[-1].y))
    series = [
        *([Series("best", _BEST, tuple(best))] if best else []),
        *([Series("complete", _COMPLETE, tuple(dots[True]), "dots")] if dots[True] else []),
        *([Series("pruned", _PRUNED, tuple(dots[False]), "dots")] if dots[False] else []),
    ]
    y = axis_over([trial.value or 0.0 for trial in ended], "number", from_zero=False, may_be_log=True)
    return Plot(f"{study.metric} by trial", axis_over([1, len(ended)], "count"), "ended trials", y, tuple(series))


def curves(study: StudyStatus) -> Plot | None:
    """Best value so far of each trial over its epochs. The ends of pruned trials show what pruning saves."""
    trials = [trial for trial in study.trials if len(trial.reached) > 1 or (trial.state == "pruned" and trial.reached)]
    trials = trials[-MOST_CURVES:]
    best = study.best()
    if not trials:
        return None
    kinds: tuple[tuple[str, int, Shape], ...] = (("pruned", _PRUNED, "dashes"), ("complete", _COMPLETE, "line"))
    series: list[Series] = []
    for state, colour, shape in kinds:
        of_state = [trial for trial in trials if trial.state == state and trial is not best]
        series += [
            Series(state if place == len(of_state) - 1 else "", colour, _curve(trial), shape)
            for place, trial in enumerate(of_state)
        ]
    # A single report is not a line.
    dots = tuple(_curve(trial)[0] for trial in trials if trial.state == "pruned" and len(_curve(trial)) == 1)
    if dots:
        series.append(Series("", _PRUNED, dots, "dots"))
    if best is not None and best.reached:
        series.append(Series("best", _BEST, _curve(best)))
    values = [value for trial in trials for _, value in trial.reached]
    x, y = axis_over([0, study.resource], "count"), axis_over(values, "number", from_zero=False, may_be_log=True)
    return Plot(f"{study.metric} by epoch", x, "epochs", y, tuple(series)) if series else None


def memory(study: StudyStatus) -> Plot | None:
    """One dot per trial: predicted on the x axis, measured on the y axis."""
    measured = [
        (trial.facts.predicted_peak_bytes, trial.facts.peak_bytes)
        for trial in study.trials
        if trial.state == "complete" and trial.facts.predicted_peak_bytes and trial.facts.peak_bytes
    ]
    if not measured:
        return None
    axis = axis_over([value for pair in measured for value in pair], "bytes", from_zero=False)
    ends = tuple(Point(value, value, value, value) for value in (axis.low, axis.high))
    dots = tuple(Point(predicted, peak, peak, peak) for predicted, peak in measured)
    series = (Series("as predicted", 1, ends, "dashes"), Series("", 0, dots, "dots"))
    return Plot("measured against predicted peak", axis, "predicted", axis, series)


def _curve(trial: TrialStatus) -> tuple[Point, ...]:
    return tuple(Point(step, value, value, value) for step, value in trial.reached if math.isfinite(value))
