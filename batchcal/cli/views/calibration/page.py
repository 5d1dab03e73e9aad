"""A calibration as one self-contained HTML page: no script, font or picture from elsewhere. Light and dark."""

from __future__ import annotations

from html import escape

from batchcal.calibration.schema import Calibration, Capacity, Finding, Measurement
from batchcal.cli.views.calibration.decisions import decisions
from batchcal.cli.views.calibration.speeds import (
    all_of_them,
    attribution_row,
    checkpointing_line,
    finalist_row,
    promise_line,
    settings_line,
    told_of,
)
from batchcal.cli.views.calibration.view import Seen, memory_parts
from batchcal.cli.views.charts import speed_svg
from batchcal.cli.views.charts.memory import memory_chart
from batchcal.cli.views.charts.memory_svg import draw
from batchcal.cli.views.html import document, table
from batchcal.cli.views.words import count, limit_sentence, long, peak_of, tone
from batchcal.core.units import count_of, format_bytes, format_seconds
from batchcal.plan.effective_batch import unset_remark
from batchcal.plan.make import plan_to_show


def page(seen: Seen) -> str:
    """Return the complete document."""
    calibration = seen.calibration
    finding = calibration.finding()
    body = [
        *_header(seen),
        *([] if finding is None else _answers(calibration, finding)),
        *([] if finding is None else _plan(calibration)),
        *([] if finding is None else _memory(calibration, finding)),
        *_curves(calibration),
        *_speeds(calibration),
        *_outcomes(calibration),
        *_why(calibration),
        *_remarks(seen),
        f"<footer>{escape(str(seen.path) if seen.path else 'not saved')} · batchcal {escape(calibration.batchcal)}</footer>",
    ]
    return document(f"{calibration.task.spec}: calibration", body)


def _header(seen: Seen) -> list[str]:
    calibration = seen.calibration
    fresh = seen.stale is None and seen.path is not None
    made = calibration.created_at.strftime("%Y-%m-%d %H:%M UTC")
    where = f"{calibration.chosen_device}, allocator {calibration.policy}"
    cpu, memory = calibration.environment.cpu, calibration.environment.memory
    parts = [
        f'<header><h1>{escape(calibration.task.spec)}</h1><span class="badge{"" if fresh else " stale"}">'
        f"{escape(seen.freshness)}</span></header>",
        f'<p class="about">{escape(where)}, measured {made} '
        f"with {count_of(len(calibration.measurements), 'probe')} in {format_seconds(calibration.wall_s)}</p>",
        f'<p class="about">{escape(cpu.model or cpu.architecture)}, {cpu.cores.value:g} cores, '
        f"{format_bytes(memory.limit.value)}, torch {escape(calibration.environment.software.torch or 'unknown')}</p>",
    ]
    if seen.stale is not None:
        parts.append(f'<p class="warn">{escape(str(seen.stale))}</p>')
    if calibration.status != "complete":
        what = {"unsettled": "verified, but the search ended before it was done", "partial": "nothing was verified"}
        parts.append(f'<p class="warn">{calibration.status}: {what[calibration.status]}</p>')
    return parts


def _answers(calibration: Calibration, finding: Finding) -> list[str]:
    cards = [_card(calibration, finding, finding.train, "train")]
    if finding.eval is not None:
        cards.append(_card(calibration, finding, finding.eval, "eval"))
    return ['<section class="answers">', *cards, "</section>"]


def _card(calibration: Calibration, finding: Finding, capacity: Capacity, mode: str) -> str:
    limit = limit_sentence(calibration, finding, "eval" if mode == "eval" else "train")
    name = "train with" if mode == "train" else "evaluate with"
    return (
        f'<div><h2>{name}</h2><div class="big {mode}">{count(capacity.batch)}</div>'
        f'<p class="facts"><b>{count(capacity.samples_per_s)}</b> samples/s · '
        f"<b>{format_bytes(capacity.peak_bytes)}</b> at its peak</p>"
        f'<p class="facts soft">limited by {escape(limit)}</p></div>'
    )


def _plan(calibration: Calibration) -> list[str]:
    """The plan and its gain."""
    plan, refused = plan_to_show(calibration)
    told = told_of(calibration, plan)
    parts = [
        "<section><h2>the plan</h2>",
        f'<p class="facts"><b>{escape(settings_line(plan))}</b></p>',
        f'<p class="facts soft">{escape(promise_line(plan, told))}</p>',
        f'<p class="facts soft">{escape(unset_remark(calibration))}</p>',
    ]
    if refused:
        parts.append(f'<p class="facts">this plan is for the largest undivided batch: {escape(refused)}</p>')
    if told is not None and told.knobs:
        rows = [attribution_row(told, knob) for knob in told.knobs] + ([all_of_them(told)] if len(told.knobs) > 1 else [])
        parts += table(("turned back", "to", "samples/s", "gain"), rows, numbers={"samples/s", "gain"})
        traded = checkpointing_line(told)
        if traded:
            parts.append(f'<p class="facts soft">{escape(traded)}</p>')
    return [*parts, "</section>"]


def _speeds(calibration: Calibration) -> list[str]:
    """Measured speeds: sizes by policy, then threads and workers."""
    parts = []
    drawn = speed_svg.draw(calibration)
    if drawn:
        parts.append(f"<section><h2>how fast it trains, by micro-batch and allocator</h2>\n{drawn}</section>")
    finding = calibration.finding()
    finals = None if finding is None else calibration.finals_of(finding)
    if finals is not None:
        heads = ("threads", "workers", "samples/s", "at most", "")
        rows = [finalist_row(one, finals) for one in finals.finalists]
        raced = table(heads, rows, numbers=set(heads[:-1]), chosen=0)
        parts += ["<section><h2>threads and workers</h2>", *raced, "</section>"]
    return parts


def _memory(calibration: Calibration, finding: Finding) -> list[str]:
    parts = memory_parts(calibration, finding)
    total = sum(size for _, size in parts)
    if total <= 0:
        return []
    shown = [(name, "rest" if name == "at rest" else name, size) for name, size in parts if size > 0]
    bars = "".join(f'<span class="{kind}" style="flex:{size / total:.5f}"></span>' for _, kind, size in shown)
    keys = "".join(f'<li><i class="{kind}"></i>{name} <b>{format_bytes(size)}</b></li>' for name, kind, size in shown)
    return [
        f"<section><h2>where the {format_bytes(total)} go while it trains</h2>",
        f'<div class="bar">{bars}</div><ul class="key">{keys}</ul></section>',
    ]


def _curves(calibration: Calibration) -> list[str]:
    parts = []
    first = calibration.finding()
    for finding in sorted(calibration.findings, key=lambda one: one is not first):
        chart = memory_chart(calibration, finding)
        if chart is not None:
            parts.append(f"<section><h2>{escape(chart.title)}</h2>\n{draw(chart)}</section>")
    return parts


def _outcomes(calibration: Calibration) -> list[str]:
    if not calibration.measurements:
        return []
    with_place = len({(probe.device, probe.allocator) for probe in calibration.measurements}) > 1
    place = ("where",) if with_place else ()
    heads = ("#", "phase", *place, "batch", "predicted", "peak", "of budget", "samples/s", "outcome")
    numbers = {"#", "batch", "predicted", "peak", "samples/s"}
    head = "".join(f"<th{' class=n' if name in numbers else ''}>{name}</th>" for name in heads)
    rows = [_row(calibration, probe, with_place=with_place) for probe in calibration.measurements]
    return [
        "<section><h2>probes, in order</h2>",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>',
        *rows,
        "</tbody></table></div></section>",
    ]


def _row(calibration: Calibration, probe: Measurement, *, with_place: bool) -> str:
    peak, kind = peak_of(probe.outcome), tone(probe.outcome)
    budget = calibration.budget(probe.device)
    held = None if peak is None else peak.held_on(probe.device)
    meter = ""
    if held is not None and budget is not None:
        share = min(held / max(budget.budget_bytes, 1), 1.0)
        meter = f'<div class="meter {kind}"><i style="width:{share:.1%}"></i></div>'
    rate = count(probe.outcome.samples_per_s) if probe.outcome.kind == "fits" else ""
    predicted = "" if probe.predicted_bytes is None else format_bytes(probe.predicted_bytes)
    place = f'<td class="soft">{escape(probe.device)} {escape(probe.allocator)}</td>' if with_place else ""
    return (
        f'<tr><td class="n soft">{probe.sequence}</td><td>{probe.phase}</td>{place}'
        f'<td class="n">{"eval " if probe.mode == "eval" else ""}{count(probe.batch)}</td><td class="n soft">{predicted}</td>'
        f'<td class="n">{"" if held is None else format_bytes(held)}</td><td>{meter}</td><td class="n">{rate}</td>'
        f'<td class="{kind}">{escape(long(probe.outcome))}</td></tr>'
    )


def _why(calibration: Calibration) -> list[str]:
    told = "".join(f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>" for question, answer in decisions(calibration))
    return [f"<section><h2>why</h2><dl>{told}</dl></section>"]


def _remarks(seen: Seen) -> list[str]:
    remarks = [*seen.notices, *seen.calibration.notes, *(advice.text for advice in seen.calibration.environment.advice)]
    if not remarks:
        return []
    items = "".join(f"<li>{escape(text)}</li>" for text in remarks)
    return [f'<section><h2>good to know</h2><ul class="plain">{items}</ul></section>']
