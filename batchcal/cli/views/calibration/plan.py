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
    found = tuple(predictions)
    error = max((one.relative_error or 0.0 for one in found), default=0.0)
    told = f"predicted from the memory model (±{error:.0%}), and nothing of this was run"
    yield Text(told, style="yellow")
    yield Text("")
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    for name in ("container", "budget", "batch", "steps", "effective", "eval", "peak"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limited by")
    for one in found:
        if not one.micro_batch:
            cells = [format_bytes(one.limit_bytes), format_bytes(max(one.budget_bytes, 0)), *"-----"]
            table.add_row(*cells, Text("nothing fits", style="red"))
            continue
        peak = format_bytes(one.predicted_peak_bytes or 0)
        table.add_row(
            *(
                format_bytes(one.limit_bytes),
                format_bytes(one.budget_bytes),
                count(one.micro_batch),
                count(one.accumulation_steps),
            ),
            *(count(one.effective_batch), count(one.eval_batch) if one.eval_batch else "-", peak, one.limited_by),
        )
    yield table
    for one in found:
        if not one.micro_batch:
            yield hanging("  ! ", f"{format_bytes(one.limit_bytes)}: {one.why}", style="yellow")
