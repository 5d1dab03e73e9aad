"""Speeds of the DataLoaders, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.calibration.records.pipeline import LoaderTiming, PipelineResult
from batchcal.cli.views.calibration.view import hanging
from batchcal.cli.views.words import count
from batchcal.core.units import count_of


def show(result: PipelineResult) -> Iterator[RenderableType]:
    """Yield a sentence, then the table."""
    winner = result.winner.config
    prefetch = f", prefetch {winner.prefetch_factor}" if winner.prefetch_factor else ""
    text = f"{count_of(winner.num_workers, 'worker')}{prefetch}"
    text = text if result.settled else f"{text} (not decided: the comparison ended before the result was certain)"
    yield Text(text, style="green" if result.settled else "yellow")
    batches = f"{result.fetches} batches of {count(result.batch)}"
    yield hanging("", f"only the input pipeline, without a model: {batches} per round", style="dim")
    yield Text("")
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    for name in ("workers", "prefetch", "samples/s", "95th-percentile wait", "rounds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for timing in result.timings:
        config = timing.config
        table.add_row(
            str(config.num_workers),
            str(config.prefetch_factor or "-"),
            "-" if timing.samples_per_s is None else count(timing.samples_per_s),
            "-" if timing.p95_s is None else f"{timing.p95_s * 1000:.1f} ms",
            str(timing.rounds),
            _remark(timing, result),
        )
    yield table


def _remark(timing: LoaderTiming, result: PipelineResult) -> str:
    best = result.winner.samples_per_s
    if timing is result.winner:
        return "chosen"
    if timing.samples_per_s is None or best is None:
        return timing.why or "not run: no time was left"
    if timing.samples_per_s * (1 + result.tie) >= best:
        return "equally fast"
    return f"{1 - timing.samples_per_s / best:.0%} fewer samples/s"
