"""A plan, and predictions for other container sizes, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.calibration.view import hanging
from batchcal.cli.views.words import count
from batchcal.core.units import format_bytes
from batchcal.plan.plan import KEYS, Plan
from batchcal.plan.what_if import Prediction

_FIRST = ("effective_batch", "micro_batch", "accumulation_steps", "micro_batches", "eval_batch")
_HIDDEN = ("format", "status")


def show(plan: Plan) -> Iterator[RenderableType]:
    """Yield each setting with its reason."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold", max_width=26)
    table.add_column(style="dim", overflow="fold")
    yield Text(f"{plan.status}: {plan.why.get('status', '')}", style="green" if plan.status == "verified" else "yellow")
    yield Text("")
    for key in (*_FIRST, *(key for key in KEYS if key not in (*_FIRST, *_HIDDEN))):
        table.add_row(key, _value(plan, key), plan.why.get(key, ""))
    yield table
    if plan.notices:
        yield Text("")
    for notice in plan.notices:
        yield hanging("  ! ", notice, style="yellow")


def _value(plan: Plan, key: str) -> str:
    value: object = getattr(plan, key)
    if key == "micro_batches":
        return in_runs(plan.micro_batches)
    if key.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "inexact":
        return " and ".join(name.replace("-", " ") for name in plan.inexact) or ("unknown" if plan.unchecked else "no")
    return count(value) if isinstance(value, int | float) else str(value)


def in_runs(sizes: tuple[int, ...]) -> str:
    """(25, 24, 24, 24) -> `25 + 3 x 24`."""
    runs: list[tuple[int, int]] = []
    for size in sizes:
        if runs and runs[-1][1] == size:
            runs[-1] = (runs[-1][0] + 1, size)
        else:
            runs.append((1, size))
    return " + ".join(str(size) if times == 1 else f"{times} x {size}" for times, size in runs)


def show_predictions(predictions: Iterable[Prediction]) -> Iterator[RenderableType]:
    """Yield one row for each container size. The heading states that none of this was run."""
    predictions = tuple(predictions)
    error = max((prediction.relative_error or 0.0 for prediction in predictions), default=0.0)
    yield Text(f"predicted from the memory model (±{error:.0%}); none of this was run", style="yellow")
    yield Text("")
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    for name in ("container", "budget", "batch", "steps", "effective", "eval", "peak"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limited by")
    for prediction in predictions:
        limit = format_bytes(prediction.limit_bytes)
        if not prediction.micro_batch:
            cells = [limit, format_bytes(max(prediction.budget_bytes, 0)), *"-----"]
            table.add_row(*cells, Text("nothing fits", style="red"))
            continue
        table.add_row(
            limit,
            format_bytes(prediction.budget_bytes),
            count(prediction.micro_batch),
            count(prediction.accumulation_steps),
            count(prediction.effective_batch),
            count(prediction.eval_batch) if prediction.eval_batch else "-",
            format_bytes(prediction.predicted_peak_bytes or 0),
            prediction.limited_by,
        )
    yield table
    for prediction in predictions:
        if not prediction.micro_batch:
            yield hanging("  ! ", f"{format_bytes(prediction.limit_bytes)}: {prediction.why}", style="yellow")
