"""A calibration as one self-contained HTML page."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.schema import Calibration, Capacity, Finding, Measurement
from batchcal.cli.views.calibration.decisions import decisions
from batchcal.cli.views.calibration.speeds import (
    ATTRIBUTION_HEADS,
    all_defaults_row,
    attribution_of,
    attribution_row,
    checkpointing_line,
    finalist_row,
    promise_line,
    settings_line,
)
from batchcal.cli.views.calibration.view import UNFINISHED, ShownCalibration, memory_parts, unfinished
from batchcal.cli.views.charts.memory import memory_chart
from batchcal.cli.views.charts.speeds import speeds_chart
from batchcal.cli.views.pages.page import Card, Cell, Chart, Line, Page, Part, Section, Table
from batchcal.cli.views.words import count, limit_sentence, long, peak_of, tone
from batchcal.core.units import count_of, format_bytes, format_seconds
from batchcal.plan.effective_batch import unset_remark
from batchcal.plan.make import plan_to_show

_CLASSES: Final = {"other processes": "others", "without a batch": "rest"}
"""Classes of the style sheet for parts of the memory whose name is not the class."""


def page(shown: ShownCalibration) -> str:
    """Return the complete document."""
    calibration = shown.calibration
    finding = calibration.finding()
    of_finding = [] if finding is None else [_plan(calibration), *_memory(calibration, finding)]
    sections = [
        *of_finding,
        *_curves(calibration),
        *_speeds(calibration),
        *_outcomes(calibration),
        Section("why", answers=tuple(decisions(calibration))),
        *_remarks(shown),
    ]
    return Page(
        title=f"{calibration.task.spec}: calibration",
        name=calibration.task.spec,
        badge=shown.freshness,
        good=shown.stale is None and shown.path is not None,
        about=_about(calibration),
        warnings=_warnings(shown),
        cards=() if finding is None else _cards(calibration, finding),
        rows=tuple((section,) for section in sections),
        footer=f"{shown.path or 'not saved'} · batchcal {calibration.batchcal}",
    ).html()


def _about(calibration: Calibration) -> tuple[str, ...]:
    created = calibration.created_at.strftime("%Y-%m-%d %H:%M UTC")
    cpu, memory = calibration.environment.cpu, calibration.environment.memory
    return (
        f"{calibration.chosen_device}, allocator {calibration.policy}, measured {created} "
        f"with {count_of(len(calibration.measurements), 'probe')} in {format_seconds(calibration.wall_s)}",
        f"{cpu.model or cpu.architecture}, {cpu.cores.value:g} cores, {format_bytes(memory.limit.value)}, "
        f"torch {calibration.environment.software.torch or 'unknown'}",
    )


def _warnings(shown: ShownCalibration) -> tuple[str, ...]:
    stale = () if shown.stale is None else (f"{shown.stale}. To measure again: batchcal calibrate",)
    return (*stale, *((unfinished(shown.calibration),) if shown.calibration.status in UNFINISHED else ()))


def _cards(calibration: Calibration, finding: Finding) -> tuple[Card, ...]:
    def card(capacity: Capacity, name: str, kind: str, limit: str) -> Card:
        rate = f"{count(capacity.samples_per_s)} samples/s · {format_bytes(capacity.peak_bytes)} peak memory"
        return Card(name, count(capacity.batch), (Line(rate, "strong"), Line(f"limited by {limit}", "soft")), f"big {kind}")

    train = card(finding.train, "train with", "train", limit_sentence(calibration, finding))
    if finding.eval is None:
        return (train,)
    return (train, card(finding.eval, "evaluate with", "eval", limit_sentence(calibration, finding, "eval")))


def _plan(calibration: Calibration) -> Section:
    """The plan and its gain."""
    plan, refused = plan_to_show(calibration)
    attribution = attribution_of(calibration, plan)
    lines = [
        Line(settings_line(plan), "strong"),
        Line(promise_line(plan, attribution), "soft"),
        Line(unset_remark(calibration), "soft"),
    ]
    if refused:
        lines.append(Line(f"this plan is for the largest undivided batch: {refused}"))
    table = None
    if attribution is not None and attribution.knobs and attribution.is_by_knob:
        rows = [attribution_row(attribution, knob) for knob in attribution.knobs]
        rows += [all_defaults_row(attribution)] if len(attribution.knobs) > 1 else []
        table = Table.of(ATTRIBUTION_HEADS, rows, numbers=set(ATTRIBUTION_HEADS[2:]))
        lines.append(Line(checkpointing_line(attribution), "soft"))
    return Section("the plan", lines=tuple(line for line in lines if line.text), table=table)


def _memory(calibration: Calibration, finding: Finding) -> list[Section]:
    parts = [part for part in memory_parts(calibration, finding) if part[1] > 0]
    total = sum(size for _, size in parts)
    if total <= 0:
        return []
    bar = tuple(Part(name, format_bytes(size), size / total, _CLASSES.get(name, name)) for name, size in parts)
    return [Section(f"use of the memory limit of {format_bytes(total)} during training", parts=bar)]


def _curves(calibration: Calibration) -> list[Section]:
    first = calibration.finding()
    findings = sorted(calibration.findings, key=lambda finding: finding is not first)
    plots = [plot for finding in findings if (plot := memory_chart(calibration, finding)) is not None]
    return [Section(plot.title, chart=Chart.of(plot, height=420)) for plot in plots]


def _speeds(calibration: Calibration) -> list[Section]:
    """Measured speeds: sizes by policy, then threads and workers."""
    sections = []
    plot = speeds_chart(calibration)
    if plot is not None:
        sections.append(Section(plot.title, chart=Chart.of(plot, height=340)))
    finding = calibration.finding()
    finals = None if finding is None else calibration.finals_of(finding)
    if finals is not None:
        heads = ("threads", "workers", "samples/s", "upper bound", "")
        rows = [finalist_row(finalist, finals) for finalist in finals.finalists]
        sections.append(Section("threads and workers", table=Table.of(heads, rows, numbers=set(heads[:-1]), chosen=0)))
    return sections


def _outcomes(calibration: Calibration) -> list[Section]:
    if not calibration.measurements:
        return []
    with_place = len({(probe.device, probe.allocator) for probe in calibration.measurements}) > 1
    heads = ("#", "phase", *(("setup",) if with_place else ()), "batch", "predicted", "peak", "of budget", "samples/s", "outcome")
    numbers = {"#", "batch", "predicted", "peak", "samples/s"}
    table = Table(
        heads=tuple(Cell(head, "n" if head in numbers else "") for head in heads),
        rows=tuple(_row(calibration, probe, with_place=with_place) for probe in calibration.measurements),
    )
    return [Section("probes, in order", table=table)]


def _row(calibration: Calibration, probe: Measurement, *, with_place: bool) -> tuple[Cell, ...]:
    peak, kind = peak_of(probe.outcome), tone(probe.outcome)
    budget = calibration.budget(probe.device)
    peak_bytes = None if peak is None else peak.bytes_on(probe.device)
    share = None if peak_bytes is None or budget is None else min(peak_bytes / max(budget.budget_bytes, 1), 1.0)
    return (
        Cell(str(probe.sequence), "n soft"),
        Cell(probe.phase),
        *((Cell(f"{probe.device} {probe.allocator}", "soft"),) if with_place else ()),
        Cell(f"{'eval ' if probe.mode == 'eval' else ''}{count(probe.batch)}", "n"),
        Cell("" if probe.predicted_bytes is None else format_bytes(probe.predicted_bytes), "n soft"),
        Cell("" if peak_bytes is None else format_bytes(peak_bytes), "n"),
        Cell("", kind, share),
        Cell(count(probe.outcome.samples_per_s) if probe.outcome.kind == "fits" else "", "n"),
        Cell(long(probe.outcome), kind),
    )


def _remarks(shown: ShownCalibration) -> list[Section]:
    calibration = shown.calibration
    remarks = (*shown.notices, *calibration.notes, *(advice.text for advice in calibration.environment.advice))
    return [Section("notes", items=remarks)] if remarks else []
