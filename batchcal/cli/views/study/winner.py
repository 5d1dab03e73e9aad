"""The best trial of a study on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.study.words import batch_of, text_of
from batchcal.cli.views.words import count
from batchcal.core.units import count_of, format_bytes
from batchcal.hpo.study_status import StudyStatus, TrialStatus


def show(study: StudyStatus, best: TrialStatus) -> Iterator[RenderableType]:
    """Yield its value, its sampled parameters, and how it was trained."""
    result = "" if best.value is None else f"{study.metric} {number(best.value)}"
    yield Text.assemble((result, "bold green"), f"  trial {best.number} of study {study.name}", no_wrap=True, overflow="ellipsis")
    yield Text("")
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(style="bold")
    for name, value in best.parameters.items():
        table.add_row(name, text_of(value))
    yield table
    yield Text("")
    facts = best.facts
    lines = [f"effective batch {batch_of(best)}" if facts.effective_batch else ""]
    lines.append(f"evaluated in batches of {count(facts.eval_batch)}" if facts.eval_batch else "")
    lines.append(f"peak {format_bytes(facts.peak_bytes)}" if facts.peak_bytes else "")
    lines.append(f"{count_of(best.epochs, 'epoch')}" if best.epochs else "")
    yield Text("  " + ", ".join(line for line in lines if line), style="dim")
    if facts.fold_values:
        yield Text("  folds: " + ", ".join(number(value) for value in facts.fold_values), style="dim")
    if facts.stop_reason:
        yield Text(f"  stopped early: {facts.stop_reason}", style="dim")
