"""The result of a training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.words import count
from batchcal.core.units import count_of, format_bytes, format_seconds
from batchcal.plan.plan import Plan
from batchcal.train.result import TrainingResult

FEW: Final = 2
"""Most metrics of an evaluation that leave room for all other columns."""


def show(result: TrainingResult, plan: Plan) -> Iterator[RenderableType]:
    """Yield one row per epoch, then speed, memory compared with the plan, and the checkpoint."""
    names = sorted({name for epoch in result.epochs for name in epoch.evaluation})
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    # With several tasks, names go to a second line and steps, equal in every epoch, are left out: 80 columns fit three.
    many = len(names) > FEW
    evaluated = (f"eval\n{name}" if many else f"eval {name}" for name in names)
    for name in ("epoch", "loss", *evaluated, *([] if many else ["steps"]), "samples/s", "time"):
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for epoch in result.epochs:
        table.add_row(
            *(str(epoch.epoch + 1), f"{epoch.loss:.4f}"),
            *("" if name not in epoch.evaluation else _metric(epoch.evaluation[name]) for name in names),
            *([] if many else [count(epoch.steps)]),
            *(count(epoch.samples_per_s), format_seconds(epoch.wall_s)),
        )
    yield table
    yield Text("")
    peak_bytes = result.peak_bytes if result.accelerator_peak_bytes is None else result.accelerator_peak_bytes
    text = Text(f"  {count(result.samples_per_s)} samples/s, peak {format_bytes(peak_bytes)}")
    text.append(f"  ({format_bytes(plan.predicted_peak_bytes)} predicted, {format_bytes(plan.budget_bytes)} budget)", style="dim")
    yield text
    if result.checkpoint is not None:
        yield Text(f"  checkpoint {result.checkpoint}", overflow="fold", no_wrap=False)
    if result.skipped_steps:
        steps = sum(epoch.steps for epoch in result.epochs)
        skipped = f"{count(result.skipped_steps)} of {count_of(steps, 'step')}"
        yield Text(f"  {skipped} skipped: they changed no parameter", style="dim")


def _metric(value: float | None) -> str:
    return "NaN or infinite" if value is None else f"{value:.4f}"
