"""Requested shapes of a model: the predicted settings of a training for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchcal.cli.views.words import count
from batchcal.core.units import format_bytes
from batchcal.plan.shapes import ShapePrediction

AS_CALIBRATED = "as calibrated"
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show(predictions: Sequence[ShapePrediction]) -> Iterator[RenderableType]:
    """Yield one line per shape."""
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column("shape", overflow="fold")
    for name in ("parameters", "without batch", "micro-batch", "steps", "peak"):
        table.add_column(name, justify="right", no_wrap=True)
    for prediction in predictions:
        name = ", ".join(f"{key}={value}" for key, value in prediction.arguments.items()) or AS_CALIBRATED
        if prediction.micro_batch:
            peak = "" if prediction.predicted_peak_bytes is None else format_bytes(prediction.predicted_peak_bytes)
            cells = (count(prediction.micro_batch), f"x {prediction.accumulation_steps}", peak)
        else:
            cells = ("-", "", "does not fit" if prediction.traced else "not traced")
        table.add_row(name, _parameters(prediction.parameters), format_bytes(prediction.at_rest_bytes), *cells)
    yield table
    if predictions:
        budget = format_bytes(predictions[0].budget_bytes)
        effective = count(predictions[0].effective_batch)
        yield Text(f"  predicted, not run: for an effective batch of {effective} and a budget of {budget}", style="dim")
    for prediction in predictions:
        if prediction.why and not prediction.traced:
            yield Text(f"  {prediction.why}", style="dim", overflow="fold")


def _parameters(number: int) -> str:
    """`2.15 G`."""
    return next((f"{number / scale:.3g} {unit}" for scale, unit in _SCALES if number >= scale), str(number))
