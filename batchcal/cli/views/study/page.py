"""A study as one self-contained HTML page. Light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

from batchcal.cli.views.charts import parallel_svg
from batchcal.cli.views.charts.plot import Plot
from batchcal.cli.views.charts.plot_svg import draw
from batchcal.cli.views.html import document
from batchcal.cli.views.study import charts
from batchcal.cli.views.study.words import HEADS, NUMBERS, reason, row, shown, summary
from batchcal.core.units import count_of
from batchcal.hpo.study_status import StudyStatus

_MOST_ROWS: Final = 300
_MOST_REASONS: Final = 40
_WIDE: Final = 920


def page(seen: StudyStatus, importances: Mapping[str, float], where: str) -> str:
    """Return the complete document.

    Args:
        importances: share of each parameter in the quality of trials, by name.
    """
    body = [
        *_header(seen),
        *_answers(seen),
        *_chart(f"{seen.metric}, trial by trial", charts.best_over_time(seen), _WIDE, 320),
        *_parallel(seen),
        *_importances(importances),
        *_chart("predicted against measured memory", charts.memory(seen), _WIDE, 280),
        *_chart("where trials were given up", charts.curves(seen), _WIDE, 320),
        *_trials(seen),
        *_reasons(seen),
        f"<footer>{escape(where)}</footer>",
    ]
    styles = [("batchcal.cli.views.run", "run.css"), ("batchcal.cli.views.study", "study.css")]
    return document(f"{seen.name}: study", body, styles=styles)


def _header(seen: StudyStatus) -> list[str]:
    done = seen.done >= seen.wanted
    badge = f'<span class="badge{"" if done else " stale"}">{seen.done:,} of {count_of(seen.wanted, "trial")}</span>'
    about = f"{seen.task}: {seen.direction} {seen.metric}, {count_of(seen.resource, 'epoch')} a trial at most"
    return [f"<header><h1>study {escape(seen.name)}</h1>{badge}</header>", f'<p class="about">{escape(about)}</p>']


def _answers(seen: StudyStatus) -> list[str]:
    cards = [
        f'<div><h2>{escape(name)}</h2><div class="value">{escape(answer)}</div><p class="facts soft">{escape(besides)}</p></div>'
        for name, answer, besides in summary(seen)
    ]
    return ['<section class="answers">', *cards, "</section>"]


def _chart(title: str, plot: Plot | None, width: int, height: int) -> list[str]:
    if plot is None:
        return []
    return [f"<section><h2>{escape(title)}</h2>\n{draw(plot, width=width, height=height)}</section>"]


def _parallel(seen: StudyStatus) -> list[str]:
    drawn = parallel_svg.draw(seen)
    return [f"<section><h2>what was sampled, the better the darker; the best in green</h2>\n{drawn}</section>"] if drawn else []


def _importances(importances: Mapping[str, float]) -> list[str]:
    if not importances:
        told = '<p class="facts soft">nothing can be said: too few trials are complete, or all are as good</p>'
        return [f"<section><h2>which parameters matter</h2>{told}</section>"]
    most = max(importances.values()) or 1.0
    rows = "".join(
        f'<span>{escape(name)}</span><div class="meter"><i style="width:{share / most:.1%}"></i></div><b>{share:.0%}</b>'
        for name, share in sorted(importances.items(), key=lambda one: -one[1])
    )
    told = '<p class="facts soft">share of each parameter in what sets the best trials apart (PED-ANOVA)</p>'
    return [f'<section><h2>which parameters matter</h2><div class="importance">{rows}</div>{told}</section>']


def _trials(seen: StudyStatus) -> list[str]:
    best = seen.best()
    heads = "".join(f'<th class="{"n" if head in NUMBERS else ""}">{head}</th>' for head in HEADS)
    lines = []
    ranked = shown(seen)
    for one in ranked[:_MOST_ROWS]:
        cells = "".join(
            f'<td class="{"n" if head in NUMBERS else one.state if head == "state" else "sampled"}">{escape(cell)}</td>'
            for head, cell in zip(HEADS, row(seen, one), strict=True)
        )
        lines.append(f'<tr class="{"chosen" if best is not None and one.number == best.number else ""}">{cells}</tr>')
    if not lines:
        return []
    more = f", the first {_MOST_ROWS} of {len(ranked):,}" if len(ranked) > _MOST_ROWS else ""
    return [
        f"<section><h2>trials, the best first{more}</h2>",
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>',
        *lines,
        "</tbody></table></div></section>",
    ]


def _reasons(seen: StudyStatus) -> list[str]:
    """Reasons why trials did not run, or not to their end, except pruning."""
    told = [
        one for one in seen.trials if one.state in ("infeasible", "failed", "lost") and (one.facts.why or one.state == "lost")
    ]
    items = "".join(f"<li>{escape(reason(one))}</li>" for one in told[-_MOST_REASONS:])
    return [f'<section><h2>what did not run, and why</h2><ul class="plain">{items}</ul></section>'] if items else []
