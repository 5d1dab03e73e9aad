"""The epochs of a run as a table of texts."""

from __future__ import annotations

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.words import count
from batchcal.core.units import format_bytes
from batchcal.train.report.run import Run


def epochs_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows, with the most important columns on the left. Columns without values are left out."""
    names = dict.fromkeys(name for one in run.epochs for name in one.evaluation)
    tasks = dict.fromkeys(name for one in run.epochs for name in one.losses)
    columns = {
        "epoch": [str(one.epoch + 1) for one in run.epochs],
        "loss": [_number(one.loss) for one in run.epochs],
        **{f"eval {name}": [_number(one.evaluation.get(name)) for one in run.epochs] for name in names},
        "peak": ["" if one.peak_bytes is None else format_bytes(one.peak_bytes) for one in run.epochs],
        "samples/s": ["" if one.samples_per_s is None else count(one.samples_per_s) for one in run.epochs],
        "recovered": [str(one.recoveries) if one.recoveries else "" for one in run.epochs],
        **{f"loss {name}": [_number(one.losses.get(name)) for one in run.epochs] for name in tasks},
        "grad norm": [_number(one.named("grad_norm").get("")) for one in run.epochs],
    }
    told = {head: cells for head, cells in columns.items() if any(cells)}
    return list(told), [list(row) for row in zip(*told.values(), strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def narrowed(heads: list[str], rows: list[list[str]], *, width: int) -> tuple[list[str], list[list[str]]]:
    """Return the columns from the left that fit into `width` characters, with two characters between columns."""
    widths = [max(len(cell) for cell in cells) + 2 for cells in zip(heads, *rows, strict=True)]
    fitting = next((place for place in range(len(widths), 1, -1) if sum(widths[:place]) <= width), 1)
    return heads[:fitting], [row[:fitting] for row in rows]
