"""A study on the terminal: its results and its trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.calibration.view import hanging
from batchcal.cli.views.study.words import HEADS, NUMBERS, STYLES, ranked_trials, reason, row, summary
from batchcal.core.units import count_of
from batchcal.hpo.study_status import StudyStatus, TrialStatus
from batchcal.hpo.trials.facts import DIVERGED

_MOST_ROWS: Final = 12
_DISPENSABLE: Final = ("memory", "batch", "epochs", "#")
"""Columns that a narrow console leaves out, in this order."""
_PARAMETERS_FROM: Final = 20
_PADDING: Final = 2
_FAILED: Final = 3


def show(study: StudyStatus, *, storage: str = "") -> Iterator[RenderableType]:
    """Yield the complete view, from top to bottom."""
    yield Text.assemble(("study ", ""), (study.name, "bold"), (f"  {study.task}", "dim"), no_wrap=True, overflow="ellipsis")
    yield Text("")
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim")
    for name, answer, remark in summary(study):
        table.add_row(name, answer, remark)
    yield table
    ranked = ranked_trials(study)
    if ranked:
        yield Text("")
        yield Trials(study, ranked[:_MOST_ROWS])
    rest = len(ranked) - _MOST_ROWS
    if rest > 0:
        yield Text(f"  and {count_of(rest, 'more trial')}", style="dim")
    failed = [trial for trial in study.trials if _has_reason(trial)][-_FAILED:]
    if failed:
        yield Text("")
    for trial in failed:
        yield hanging("  - ", reason(trial), style="dim")
    if storage:
        yield Text("")
        yield Text(f"  {storage}", style="dim", overflow="fold")


def _has_reason(trial: TrialStatus) -> bool:
    """True if the reason must be shown. That of a pruned trial is visible, except if its loss was NaN or infinite."""
    return bool(trial.facts.why) and (trial.state in ("failed", "infeasible") or trial.facts.kind == DIVERGED)


class Trials:
    """One row per trial. A narrow console shows fewer columns, but no truncated numbers."""

    def __init__(self, study: StudyStatus, trials: Sequence[TrialStatus]) -> None:
        self._study, self._trials = study, trials

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [dict(zip(HEADS, row(self._study, trial), strict=True)) for trial in self._trials]
        widths = {head: max([len(head), *(len(cells[head]) for cells in rows)]) for head in HEADS}
        heads = list(HEADS)
        # Only the parameters are truncated: they are the longest, and their beginning distinguishes them from the others.
        widths["parameters"] = _remaining_width(heads, widths, options.max_width)
        for head in _DISPENSABLE:
            if widths["parameters"] < _PARAMETERS_FROM:
                heads.remove(head)
                widths["parameters"] = _remaining_width(heads, widths, options.max_width)
        best = self._study.best()
        table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
        for head in heads:
            justify: Literal["left", "right"] = "right" if head in NUMBERS else "left"
            table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis", width=widths[head])
        for trial, cells in zip(self._trials, rows, strict=True):
            texts = [Text(cells[head], style=STYLES[trial.state] if head == "state" else "") for head in heads]
            table.add_row(*texts, style="bold" if best is not None and trial.number == best.number else "")
        yield table


def _remaining_width(heads: Sequence[str], widths: Mapping[str, int], width: int) -> int:
    """Return the width that the other columns leave for the parameters."""
    return max(width - sum(widths[head] + _PADDING for head in heads if head != "parameters") - _PADDING, 1)
