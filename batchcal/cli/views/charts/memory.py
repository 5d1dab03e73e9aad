"""Memory against batch size: the memory model, the budget, and the probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.calibration.schema import Calibration, Finding, Measurement
from batchcal.cli.views.charts.plot import Axis, MarkKind, Plot, PlotMark, Point, Rule, Series
from batchcal.cli.views.words import count, peak_of, probes_of, short, tone
from batchcal.core.units import format_bytes
from batchcal.guard.outcome import OutOfMemory

FAR: Final = 2.5
"""Ratio of the budget to the largest value of a probe above which the axis ends at the probes. Else all were at the bottom."""
FAR_LIMIT: Final = 1.4
"""Ratio of the limit to the budget above which the limit is not drawn."""
_BEYOND: Final = 1.12
"""Length of the axes as a multiple of the largest value."""
_BEYOND_LIMIT: Final = 1.06
_POINTS: Final = 96
_TRAIN, _EVAL = 0, 2
"""Colours."""


def memory_chart(calibration: Calibration, finding: Finding) -> Plot | None:
    """Return the chart of a finding. None: the calibration has no budget for its device."""
    budget = calibration.budget(finding.device)
    if budget is None:
        return None
    probes = probes_of(calibration, finding)
    marks = [mark for probe in probes if (mark := _mark(probe, finding, budget.budget_bytes)) is not None]
    marks.sort(key=lambda mark: mark.kind == "result")  # the result is drawn over the others
    most_batch = max([probe.batch for probe in probes] + [finding.train.batch, 2]) * _BEYOND
    highest = max([mark.y for mark in marks], default=0.0)
    rules: tuple[Rule, ...] = ()
    device = "host memory" if finding.device == "cpu" else f"memory of {finding.device}"
    title = f"{device} by batch size, allocator {finding.allocator}"
    if highest and budget.budget_bytes > highest * FAR:
        title = f"{device} by batch size, {finding.allocator}; budget {format_bytes(budget.budget_bytes)}"
        most_bytes = highest * _BEYOND
    else:
        with_limit = budget.limit_bytes <= budget.budget_bytes * FAR_LIMIT
        rules = (Rule("budget", budget.budget_bytes), *((Rule("limit", budget.limit_bytes),) if with_limit else ()))
        most_bytes = max(highest, *(rule.y for rule in rules)) * (_BEYOND_LIMIT if with_limit else _BEYOND)
    train = Series("train", _TRAIN, _curve(finding.train_memory, most_batch, most_bytes), ranges=False)
    series = [train]
    if finding.eval is not None and finding.eval_memory is not None:
        evaluation = _curve(finding.eval_memory, most_batch, most_bytes)
        series.append(replace(train, name="eval", colour=_EVAL, points=evaluation, shape="dashes"))
    return Plot(
        title=title,
        x=Axis(0.0, most_batch, "count"),
        x_name="batch size, samples",
        y=Axis(0.0, most_bytes, "bytes"),
        series=tuple(series),
        rules=rules,
        marks=tuple(marks),
    )


def _curve(model: MemoryModel, most_batch: float, most_bytes: float) -> tuple[Point, ...]:
    """Return the predictions of a model up to where they leave the chart, with the spread between runs of this allocator."""
    points: list[Point] = []
    for place in range(_POINTS):
        batch = 1 + (most_batch - 1) * place / (_POINTS - 1)
        size = model.predict(batch)
        if size > most_bytes and points:
            break
        spread = model.spread * max(size - model.base_bytes, 0.0)
        points.append(Point(batch, size - spread, size, size + spread))
    return tuple(points)


def _mark(probe: Measurement, finding: Finding, budget_bytes: int) -> PlotMark | None:
    """Return the mark of a probe. None: the probe was inconclusive, and its peak was not predicted."""
    peak, kind = peak_of(probe.outcome), tone(probe.outcome)
    measured = None if peak is None else float(peak.bytes_on(finding.device))
    completed = isinstance(probe.outcome, OutOfMemory) and probe.outcome.source == "budget" and measured is not None
    if kind == "bad" and not completed:
        # A probe that ran out of memory is drawn at the budget or above: it needed more than was measured.
        height: float | None = max(value for value in (measured, probe.predicted_bytes, budget_bytes) if value is not None)
    else:
        height = probe.predicted_bytes if measured is None else measured
    if height is None:
        return None
    is_result = probe.sequence in {finding.train.measured_by, finding.eval.measured_by if finding.eval else -1}
    fits: MarkKind = "fits" if probe.mode == "train" else "evaluated"
    kinds: dict[str, MarkKind] = {"good": fits, "bad": "too-large", "odd": "inconclusive"}
    peak_text = "" if measured is None else f", {format_bytes(measured)}"
    return PlotMark(
        kind="result" if is_result else kinds[kind],
        x=probe.batch,
        y=height,
        text=f"probe {probe.sequence}, {probe.phase}: {probe.mode} {probe.batch}, {short(probe.outcome)}{peak_text}",
        label=count(probe.batch) if is_result else "",
    )
