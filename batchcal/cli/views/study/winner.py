"""The best trial of a study on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.study.words import batch_of, value
from batchcal.cli.views.words import count
from batchcal.core.units import count_of, format_bytes
from batchcal.hpo.study_status import StudyStatus, TrialStatus


def show(seen: StudyStatus, best: TrialStatus) -> Iterator[RenderableType]:
    """Yield its value, its sampled parameters, and how it was trained."""
    told = "" if best.value is None else f"{seen.metric} {number(best.value)}"
    yield Text.assemble((told, "bold green"), f"  trial {best.number} of study {seen.name}", no_wrap=True, overflow="ellipsis")
    yield Text("")
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(style="bold")
    for name, one in best.parameters.items():
        table.add_row(name, value(one))
    yield table
    yield Text("")
    facts = best.facts
    lines = [f"effective batch {batch_of(best)}" if facts.effective_batch else ""]
    lines.append(f"evaluated in batches of {count(facts.eval_batch)}" if facts.eval_batch else "")
    lines.append(f"{format_bytes(facts.peak_bytes)} at its peak" if facts.peak_bytes else "")
    lines.append(f"{count_of(best.epochs, 'epoch')}" if best.epochs else "")
    yield Text("  " + ", ".join(line for line in lines if line), style="dim")
    if facts.fold_values:
        yield Text("  folds: " + ", ".join(number(one) for one in facts.fold_values), style="dim")
    if facts.stop_reason:
        yield Text(f"  stopped early: {facts.stop_reason}", style="dim")
