"""Charts of a run."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from batchcal.cli.views.charts.plot import Axis, MarkKind, Plot, PlotMark, Point, Rule, Series, Shape, Unit, axis_over
from batchcal.cli.views.run.words import description
from batchcal.train.report.events import GRAD_NORM, LOSS, WEIGHT
from batchcal.train.report.run import LoggedRecovery, LoggedResize, Run

_MOST_MARKS: Final = 200
_MOST_VERTICALS: Final = 40
_MOST_DOTS: Final = 400
_NEAR: Final = 100
"""Steps on each side in which a measured step is searched."""
_FAR: Final = 1.4
"""Largest ratio of limit to budget that is drawn. A higher limit would squeeze the rest of the chart."""
T = TypeVar("T")


def loss(run: Run, points: int) -> Plot | None:
    """Loss of training at each step, and of evaluation after each epoch."""
    series = [*_lines(run, [("loss", "training", 0)], points)]
    evaluated = [(epoch.global_step, epoch.evaluation["loss"]) for epoch in run.epochs if "loss" in epoch.evaluation]
    if evaluated:
        series.append(Series("evaluation", 2, tuple(Point(step, value, value, value) for step, value in evaluated), "dots"))
    plot = _over_steps(run, "loss", "number", series, may_be_log=True)
    not_finite = run.steps.not_finite("loss")
    if plot is None or not not_finite:
        return plot
    marks = tuple(
        PlotMark("not-finite", step, plot.y.high, f"step {step:,}: the loss is NaN or infinite") for step in _thinned(not_finite)
    )
    return replace(plot, marks=marks)


def task_losses(run: Run, points: int) -> Plot | None:
    names = run.steps.named(LOSS)
    series = _lines(run, [(LOSS + name, name, place) for place, name in enumerate(names)], points)
    return _over_steps(run, "loss by task", "number", series, may_be_log=True)


def task_weights(run: Run, points: int) -> Plot | None:
    names = run.steps.named(WEIGHT)
    series = _lines(run, [(WEIGHT + name, name, place) for place, name in enumerate(names)], points)
    return _over_steps(run, "weights of the tasks", "number", series)


def gradient_norms(run: Run, points: int) -> Plot | None:
    names = run.steps.named(GRAD_NORM)
    total = [("grad_norm", "all", len(names))] if names else [("grad_norm", "norm", 0)]
    columns = [*((GRAD_NORM + name, name, place) for place, name in enumerate(names)), *total]
    return _over_steps(run, "gradient norm", "number", _lines(run, columns, points), may_be_log=True)


def learning_rate(run: Run, points: int) -> Plot | None:
    return _over_steps(run, "learning rate", "number", _lines(run, [("lr", "learning rate", 0)], points))


def throughput(run: Run, points: int) -> Plot | None:
    return _over_steps(run, "samples/s", "count", _lines(run, [("samples_per_s", "samples/s", 0)], points))


def sizes(run: Run, points: int) -> Plot | None:
    """The largest micro-batch of each step."""
    return _over_steps(run, "micro-batch, samples", "count", _lines(run, [("micro_batch", "micro-batch", 0)], points))


def memory(run: Run, points: int) -> Plot | None:
    """Peaks of steps, measured and predicted, against budget and limit, with marks for changed sizes and lack of memory."""
    series = [
        *_lines(run, [("predicted_bytes", "predicted", 2)], points, shape="dashes"),
        *_lines(run, [("peak_bytes", "measured", 0)], points),
    ]
    if not series:
        return None
    rules = _rules(run)
    highest = max([rule.y for rule in rules] + [point.high for line in series for point in line.points])
    plot = _over_steps(run, "peak memory of each step", "bytes", series, also=[highest])
    return None if plot is None else replace(plot, rules=rules, marks=tuple(_memory_marks(run, highest)))


def predictions(run: Run) -> Plot | None:
    """One dot per step: predicted on the x axis, measured on the y axis. Steps above the diagonal needed more than predicted."""
    pairs = zip(run.steps.column("predicted_bytes"), run.steps.column("peak_bytes"), strict=False)
    measured = [(predicted, peak) for predicted, peak in pairs if math.isfinite(predicted) and peak > 0]
    if not measured:
        return None
    width = max(math.ceil(2 * len(measured) / _MOST_DOTS), 1)
    groups = (measured[start : start + width] for start in range(0, len(measured), width))
    # The worst steps on both sides of each group are kept.
    worst = sorted({pair for group in groups for pair in (max(group, key=_ratio), min(group, key=_ratio))})
    axis = axis_over([value for pair in worst for value in pair], "bytes", from_zero=False)
    ends = tuple(Point(value, value, value, value) for value in (axis.low, axis.high))
    dots = tuple(Point(predicted, peak, peak, peak) for predicted, peak in worst)
    series = (Series("as predicted", 1, ends, "dashes"), Series("", 0, dots, "dots"))
    return Plot("measured against predicted peak", axis, "predicted", axis, series)


def _ratio(pair: tuple[float, float]) -> float:
    return pair[1] / max(pair[0], 1.0)


def _lines(run: Run, columns: Sequence[tuple[str, str, int]], points: int, *, shape: Shape = "line") -> list[Series]:
    """Return a line for each (column, name, colour) of `columns`. Columns without values get none."""
    lines = []
    for column, name, colour in columns:
        buckets = run.steps.buckets(column, points)
        if buckets:
            curve = tuple(Point(bucket.step, bucket.low, bucket.mean, bucket.high) for bucket in buckets)
            lines.append(Series(name, colour, curve, shape))
    return lines


def _over_steps(
    run: Run, title: str, unit: Unit, series: Sequence[Series], *, may_be_log: bool = False, also: Iterable[float] = ()
) -> Plot | None:
    """None: there is nothing to draw."""
    if not series:
        return None
    values = [value for line in series for point in line.points for value in (point.low, point.high)]
    last = max([run.steps.places[-1]] if len(run.steps) else [], default=1.0)
    epoch_starts = [float(epoch.global_step) for epoch in run.epochs if epoch.global_step < last]
    return Plot(
        title=title,
        x=Axis(0.0, max(last, 2.0), "count"),
        x_name="optimizer steps",
        y=axis_over([*values, *also], unit, from_zero=not may_be_log, may_be_log=may_be_log),
        series=tuple(series),
        verticals=tuple(epoch_starts) if len(epoch_starts) <= _MOST_VERTICALS else (),
    )


def _rules(run: Run) -> tuple[Rule, ...]:
    budget, limit = run.latest.budget_bytes, run.latest.limit_bytes
    if budget is None:
        return () if limit is None else (Rule("limit", limit),)
    with_limit = limit is not None and limit <= budget * _FAR
    return (Rule("budget", budget), *((Rule("limit", limit),) if with_limit and limit is not None else ()))


def _memory_marks(run: Run, highest: float) -> list[PlotMark]:
    budget = run.latest.budget_bytes or highest
    marks = []
    for event in _thinned([event for event in run.happenings if isinstance(event, LoggedRecovery | LoggedResize)]):
        text = f"step {event.global_step:,}: {description(event)}"
        kind: MarkKind = "recovered"
        if isinstance(event, LoggedResize):
            kind = "larger" if (event.now or 0) > (event.was or 0) else "smaller"
        # A step that ran out of memory needed more than the budget. A change is drawn at the peak of its step.
        height = float(budget) if isinstance(event, LoggedRecovery) else _peak_at(run, event.global_step, highest / 2)
        marks.append(PlotMark(kind, event.global_step, height, text))
    return marks


def _peak_at(run: Run, global_step: int, default: float) -> float:
    """Return the peak of the step, else of the nearest measured step before it, else after it."""
    peaks, place = run.steps.column("peak_bytes"), bisect.bisect_left(run.steps.places, global_step)
    near = (*reversed(peaks[max(place - _NEAR, 0) : place + 1]), *peaks[place + 1 : place + _NEAR])
    return next((peak for peak in near if math.isfinite(peak)), default)


def _thinned(items: Sequence[T]) -> Sequence[T]:
    """Return all, or every n-th if there are too many to be drawn separately."""
    return items[:: max(math.ceil(len(items) / _MOST_MARKS), 1)]
