"""A study as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from batchcal.cli.views.charts import parallel_svg
from batchcal.cli.views.charts.plot import Plot
from batchcal.cli.views.pages.page import Card, Cell, Chart, Line, Page, Part, Section, Table
from batchcal.cli.views.study import charts
from batchcal.cli.views.study.words import HEADS, NUMBERS, ranked_trials, reason, row, summary
from batchcal.core.units import count_of
from batchcal.hpo.study_status import StudyStatus

_MOST_ROWS: Final = 300
_MOST_REASONS: Final = 40


def page(study: StudyStatus, importances: Mapping[str, float], storage: str) -> str:
    """Return the complete document.

    Args:
        importances: share of each parameter in the quality of trials, by name.
    """
    sections = [
        *_chart(f"{study.metric} by trial", charts.best_over_time(study), 320),
        *_parallel(study),
        _importances(importances),
        *_chart("predicted against measured memory", charts.memory(study), 280),
        *_chart(f"{study.metric} by epoch, and the ends of pruned trials", charts.curves(study), 320),
        *_trials(study),
        *_reasons(study),
    ]
    return Page(
        title=f"{study.name}: study",
        name=f"study {study.name}",
        badge=f"{study.done:,} of {count_of(study.wanted, 'trial')}",
        good=study.done >= study.wanted,
        about=(f"{study.task}: {study.direction} {study.metric}, at most {count_of(study.resource, 'epoch')} per trial",),
        cards=tuple(Card(name, answer, (Line(remark, "soft"),)) for name, answer, remark in summary(study)),
        rows=tuple((section,) for section in sections),
        footer=storage,
    ).html()


def _chart(title: str, plot: Plot | None, height: int) -> list[Section]:
    return [] if plot is None else [Section(title, chart=Chart.of(plot, height=height))]


def _parallel(study: StudyStatus) -> list[Section]:
    svg = parallel_svg.draw(study)
    title = "sampled values by trial: darker lines are better trials, the best trial is green"
    return [Section(title, chart=Chart(svg))] if svg else []


def _importances(importances: Mapping[str, float]) -> Section:
    title = "importance of the parameters"
    if not importances:
        return Section(title, lines=(Line("unknown: too few trials are complete, or all trials are equally good", "soft"),))
    most = max(importances.values()) or 1.0
    ordered = sorted(importances.items(), key=lambda item: -item[1])
    remark = "share of each parameter in the difference between the best trials and the others (PED-ANOVA)"
    bars = tuple(Part(name, f"{share:.0%}", share / most) for name, share in ordered)
    return Section(title, lines=(Line(remark, "soft"),), shares=bars)


def _trials(study: StudyStatus) -> list[Section]:
    ranked = ranked_trials(study)
    if not ranked:
        return []
    best = study.best()
    shown = ranked[:_MOST_ROWS]
    rows = []
    for trial in shown:
        kinds = ["n" if head in NUMBERS else trial.state if head == "state" else "sampled" for head in HEADS]
        rows.append(tuple(map(Cell, row(study, trial), kinds)))
    table = Table(
        heads=tuple(Cell(head, "n" if head in NUMBERS else "") for head in HEADS),
        rows=tuple(rows),
        chosen=next((place for place, trial in enumerate(shown) if best is not None and trial.number == best.number), None),
    )
    more = f", the first {_MOST_ROWS} of {len(ranked):,}" if len(ranked) > _MOST_ROWS else ""
    return [Section(f"trials, the best first{more}", table=table)]


def _reasons(study: StudyStatus) -> list[Section]:
    """Reasons why trials did not run, or not to their end, except pruning."""
    failed = [trial for trial in study.trials if trial.state in ("infeasible", "failed", "lost")]
    explained = [trial for trial in failed if trial.facts.why or trial.state == "lost"]
    items = tuple(reason(trial) for trial in explained[-_MOST_REASONS:])
    return [Section("trials that did not finish, and why", items=items)] if items else []
