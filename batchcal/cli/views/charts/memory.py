"""The memory curve as values, to be drawn in characters or as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.calibration.schema import Calibration, Finding, Measurement, Mode
from batchcal.cli.views.words import Tone, of_finding, peak_of, short, tone
from batchcal.core.units import format_bytes
from batchcal.guard.outcome import OutOfMemory

BEYOND = 1.12
"""Length of the axes as a multiple of the largest value."""
_POINTS = 96


@dataclass(frozen=True)
class CurveMark:
    """One probe."""

    sequence: int
    mode: Mode
    batch: int
    bytes: float
    tone: Tone
    is_answer: bool
    text: str


@dataclass(frozen=True)
class Curve:
    """Predictions of the memory model, dense enough to be joined by lines."""

    mode: Mode
    points: tuple[tuple[float, float], ...]
    """(batch, bytes)."""
    spread: float
    """Fraction of the variable part by which runs differ."""
    base_bytes: float


@dataclass(frozen=True)
class MemoryChart:
    """Memory against batch for one device under one allocator."""

    title: str
    curves: tuple[Curve, ...]
    marks: tuple[CurveMark, ...]
    budget_bytes: int
    limit_bytes: int | None
    """None: so far above the budget that drawing it would squeeze the rest."""
    most_batch: float
    most_bytes: float


def memory_chart(calibration: Calibration, finding: Finding) -> MemoryChart | None:
    """Return the chart of a finding. None: the calibration has no budget for its device."""
    budget = calibration.budget(finding.device)
    if budget is None:
        return None
    probes = of_finding(calibration, finding)
    most_batch = max([one.batch for one in probes] + [finding.train.batch, 2]) * BEYOND
    marks = tuple(mark for one in probes if (mark := _mark(one, finding, budget.budget_bytes)) is not None)
    with_limit = budget.limit_bytes <= budget.budget_bytes * 1.4
    highest = max([mark.bytes for mark in marks] + [budget.limit_bytes if with_limit else budget.budget_bytes])
    curves = [_curve("train", finding.train_memory, most_batch)]
    if finding.eval is not None and finding.eval_memory is not None:
        curves.append(_curve("eval", finding.eval_memory, most_batch))
    where = "host memory" if finding.device == "cpu" else f"memory of {finding.device}"
    return MemoryChart(
        title=f"{where} against batch, allocator {finding.allocator}",
        curves=tuple(curves),
        marks=marks,
        budget_bytes=budget.budget_bytes,
        limit_bytes=budget.limit_bytes if with_limit else None,
        most_batch=most_batch,
        most_bytes=highest * (BEYOND if not with_limit else 1.06),
    )


def _curve(mode: Mode, model: MemoryModel, most_batch: float) -> Curve:
    batches = [1 + (most_batch - 1) * step / (_POINTS - 1) for step in range(_POINTS)]
    points = tuple((batch, model.predict(batch)) for batch in batches)
    return Curve(mode=mode, points=points, spread=model.spread, base_bytes=model.base_bytes)


def _mark(probe: Measurement, finding: Finding, budget_bytes: int) -> CurveMark | None:
    """Return the mark of a probe. None: the probe was inconclusive, and its peak was not predicted."""
    peak, kind = peak_of(probe.outcome), tone(probe.outcome)
    # A probe that ran out of memory is drawn at the budget or above: it needed more than was measured.
    seen = None if peak is None else float(peak.held_on(finding.device))
    known = [value for value in (seen, probe.predicted_bytes) if value is not None]
    ran = isinstance(probe.outcome, OutOfMemory) and probe.outcome.source == "budget" and seen is not None
    if kind == "bad" and not ran:
        height = max([*known, float(budget_bytes)])
    elif seen is not None:
        height = seen
    elif probe.predicted_bytes is not None:
        height = float(probe.predicted_bytes)
    else:
        return None
    answers = {finding.train.measured_by, finding.eval.measured_by if finding.eval else -1}
    return CurveMark(
        sequence=probe.sequence,
        mode=probe.mode,
        batch=probe.batch,
        bytes=height,
        tone=kind,
        is_answer=probe.sequence in answers,
        text=f"probe {probe.sequence}, {probe.phase}: {probe.mode} {probe.batch}, {short(probe.outcome)}"
        + (f", {format_bytes(seen)}" if seen is not None else ""),
    )


def ticks(most: float, *, about: int, kind: Literal["count", "bytes"]) -> tuple[float, ...]:
    """Return round values from 0 to `most`: 1, 2 or 5 times a power of ten, for bytes a power of two."""
    if most <= 0:
        return (0.0,)
    raw = most / max(about, 1)
    if kind == "bytes":
        step = 2.0 ** math.ceil(math.log2(raw))
    else:
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
        step = max(step, 1.0)
    return tuple(step * index for index in range(int(most / step) + 1))
