"""Training speed against micro-batch, one line for each allocator policy."""

from __future__ import annotations

from batchcal.calibration.records.speed import Speeds
from batchcal.calibration.schema import Calibration
from batchcal.cli.views.charts.plot import Axis, Plot, PlotMark, Point, Series
from batchcal.cli.views.words import count

_BEYOND = 1.12
"""Length of the axis of the speeds as a multiple of the largest value."""


def speeds_chart(calibration: Calibration) -> Plot | None:
    """Return the chart. None: no two sizes were timed on the chosen device."""
    timed = [speeds for speeds in calibration.speeds if speeds.device == calibration.chosen_device and speeds.times]
    sizes = sorted({float(time.micro_batch) for speeds in timed for time in speeds.times})
    if len(sizes) < 2:
        return None
    series = tuple(Series(speeds.allocator, place, _points(speeds)) for place, speeds in enumerate(timed))
    highest = max(point.y for line in series for point in line.points)
    chosen = next((line for line in series if line.name == calibration.policy), None)
    return Plot(
        title="training speed by micro-batch"
        + (" and allocator" if len(series) > 1 else f", allocator {series[0].name}")
        + ", samples/s",
        # Doublings are evenly spaced.
        x=Axis(sizes[0], sizes[-1], "count", logarithmic=True, values=tuple(sizes)),
        x_name="micro-batch, samples",
        y=Axis(0.0, highest * _BEYOND, "count"),
        series=series,
        marks=() if chosen is None else (_fastest(chosen),),
    )


def _points(speeds: Speeds) -> tuple[Point, ...]:
    # No other turn was faster than the rate. The range shows how much slower other turns were.
    rates = [(time.micro_batch, time.samples_per_s(time.micro_batch)) for time in speeds.times]
    return tuple(Point(size, rate / (1 + (speeds.spread or 0.0)), rate, rate) for size, rate in rates)


def _fastest(line: Series) -> PlotMark:
    point = max(line.points, key=lambda point: point.y)
    text = f"{line.name}, {count(point.x)}: {count(point.y)} samples/s"
    return PlotMark("fastest", point.x, point.y, text, label=count(point.y))
