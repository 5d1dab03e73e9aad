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


def best_over_time(seen: StudyStatus) -> Plot | None:
    """Value of each trial at its end, and the best value so far, by the number of ended trials."""
    there = [
        one for one in seen.trials if one.state in ("complete", "pruned") and one.ended is not None and one.value is not None
    ]
    ended = sorted(there, key=lambda one: str(one.ended))
    if not ended:
        return None
    best: list[Point] = []
    dots: dict[bool, list[Point]] = {True: [], False: []}
    for place, one in enumerate(ended, 1):
        value = one.value or 0.0
        dots[one.state == "complete"].append(Point(place, value, value, value))
        if one.state == "complete" and (not best or seen.better * value > seen.better * best[-1].y):
            best += [Point(place, best[-1].y, best[-1].y, best[-1].y)] if best else []
            best.append(Point(place, value, value, value))
    if best:
        best.append(Point(len(ended), best[-1].y, best[-1].y, best[-1].y))
    series = [
        *([Series("best", _BEST, tuple(best))] if best else []),
        *([Series("complete", _COMPLETE, tuple(dots[True]), "dots")] if dots[True] else []),
        *([Series("pruned", _PRUNED, tuple(dots[False]), "dots")] if dots[False] else []),
    ]
    y = axis_over([one.value or 0.0 for one in ended], "number", from_zero=False, may_be_log=True)
    return Plot(f"{seen.metric} by trial", axis_over([1, len(ended)], "count"), "trials that ended", y, tuple(series))


def curves(seen: StudyStatus) -> Plot | None:
    """Best value so far of each trial over its epochs. The ends of pruned trials show what pruning saves."""
    shown = [one for one in seen.trials if len(one.reached) > 1 or (one.state == "pruned" and one.reached)][-MOST_CURVES:]
    best = seen.best()
    if not shown:
        return None
    kinds: tuple[tuple[str, int, Shape], ...] = (("pruned", _PRUNED, "dashes"), ("complete", _COMPLETE, "line"))
    series: list[Series] = []
    for state, colour, shape in kinds:
        of_state = [one for one in shown if one.state == state and one is not best]
        series += [
            Series(state if place == len(of_state) - 1 else "", colour, _curve(one), shape) for place, one in enumerate(of_state)
        ]
    # A single report is not a line.
    at_once = tuple(_curve(one)[0] for one in shown if one.state == "pruned" and len(_curve(one)) == 1)
    if at_once:
        series.append(Series("", _PRUNED, at_once, "dots"))
    if best is not None and best.reached:
        series.append(Series("best", _BEST, _curve(best)))
    values = [value for one in shown for _, value in one.reached]
    y = axis_over(values, "number", from_zero=False, may_be_log=True)
    return Plot(f"{seen.metric} by epoch", axis_over([0, seen.resource], "count"), "epochs", y, tuple(series)) if series else None


def memory(seen: StudyStatus) -> Plot | None:
    """One dot per trial: predicted on the x axis, measured on the y axis."""
    both = [
        (one.facts.predicted_peak_bytes, one.facts.peak_bytes)
        for one in seen.trials
        if one.state == "complete" and one.facts.predicted_peak_bytes and one.facts.peak_bytes
    ]
    if not both:
        return None
    axis = axis_over([value for pair in both for value in pair], "bytes", from_zero=False)
    ends = tuple(Point(value, value, value, value) for value in (axis.low, axis.high))
    dots = tuple(Point(predicted, peak, peak, peak) for predicted, peak in both)
    series = (Series("as predicted", 1, ends, "dashes"), Series("", 0, dots, "dots"))
    return Plot("measured against predicted peak", axis, "predicted", axis, series)


def _curve(trial: TrialStatus) -> tuple[Point, ...]:
    return tuple(Point(step, value, value, value) for step, value in trial.reached if math.isfinite(value))
