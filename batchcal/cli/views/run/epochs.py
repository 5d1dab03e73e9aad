"""The epochs of a run as a table of texts."""

from __future__ import annotations

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.words import count
from batchcal.core.units import format_bytes
from batchcal.train.report.run import Run


def epochs_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows, with the most important columns on the left. Columns without values are left out."""
    names = dict.fromkeys(name for epoch in run.epochs for name in epoch.evaluation)
    tasks = dict.fromkeys(name for epoch in run.epochs for name in epoch.losses)
    columns = {
        "epoch": [str(epoch.epoch + 1) for epoch in run.epochs],
        "loss": [_number(epoch.loss) for epoch in run.epochs],
        **{f"eval {name}": [_number(epoch.evaluation.get(name)) for epoch in run.epochs] for name in names},
        "peak": ["" if epoch.peak_bytes is None else format_bytes(epoch.peak_bytes) for epoch in run.epochs],
        "samples/s": ["" if epoch.samples_per_s is None else count(epoch.samples_per_s) for epoch in run.epochs],
        "recovered": [str(epoch.recoveries) if epoch.recoveries else "" for epoch in run.epochs],
        **{f"loss {name}": [_number(epoch.losses.get(name)) for epoch in run.epochs] for name in tasks},
        "grad norm": [_number(epoch.named("grad_norm").get("")) for epoch in run.epochs],
    }
    filled = {head: cells for head, cells in columns.items() if any(cells)}
    return list(filled), [list(row) for row in zip(*filled.values(), strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def narrowed(heads: list[str], rows: list[list[str]], *, width: int) -> tuple[list[str], list[list[str]]]:
    """Return the columns from the left that fit into `width` characters, with two characters between columns."""
    widths = [max(len(cell) for cell in cells) + 2 for cells in zip(heads, *rows, strict=True)]
    fitting = next((place for place in range(len(widths), 1, -1) if sum(widths[:place]) <= width), 1)
    return heads[:fitting], [row[:fitting] for row in rows]
