"""The race of allocator policies: what each achieved, and at which micro-batch."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from batchcal.calibration.schema import Calibration
from batchcal.calibration.speed import Speeds
from batchcal.cli.views.words import count


def speeds(calibration: Calibration) -> Iterator[RenderableType]:
    """Nothing where no policies were raced."""
    raced = [one for one in calibration.speeds if one.device == calibration.chosen_device]
    if not raced:
        return
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=True)
    table.add_column("allocator")
    for name in ("samples/s", "at micro-batch", "rounds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for one in sorted(raced, key=lambda one: -_rate(one)):
        fastest = max(one.times, key=lambda time: time.samples_per_s(time.micro_batch), default=None)
        table.add_row(
            one.allocator,
            count(_rate(one)) if fastest is not None else "-",
            count(fastest.micro_batch) if fastest is not None else "-",
            str(one.rounds),
            "chosen" if one.allocator == calibration.policy else one.why,
        )
    yield table


def _rate(speeds: Speeds) -> float:
    """Of the fastest size, where an optimizer step is one micro-batch."""
    return max((time.samples_per_s(time.micro_batch) for time in speeds.times), default=0.0)
