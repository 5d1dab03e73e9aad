"""Fits base and ratio of a memory model to measurements. The shape comes from the static curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.core.units import MIB

OVERHEAD: Final = 20.0 * MIB
"""Memory that a first large step takes beyond the base and never returns: buffers of kernels, caches of threads. With it, the
line through small probes meets large ones (four example tasks, two optimizers, tcmalloc: bias 7 % without, under 1 % with)."""
BASE_DOUBT: Final = (15.0 * MIB, 0.02)
"""Standard deviation of base + overhead: bytes, and a share of the base."""
RATIO_DOUBT: Final = 0.4
"""Standard deviation of the ratio before the first measurement. Measured ratios were 1.0-2.1."""
RATIO_LEAST: Final = 0.01
"""Smallest ratio. A demand that falls as the batch grows is noise. A static curve a hundred times too high would be useless."""
POINT_DOUBT: Final = (3.0 * MIB, 0.04)
"""Standard deviation of one measured demand: bytes, and a share of the heap. Peaks vary by 3 % from one batch size to the next,
even if they repeat exactly at one size."""
BELIEVED: Final = 3.0
"""Number of standard deviations between a point and the fit from which the base measured after a tiny step counts as wrong."""
LEVER: Final = 1.5
"""Ratio of two heap sizes on paper from which the points give a line of their own."""


def fit(
    shape: Sequence[ShapePoint],
    points: Sequence[tuple[int, int]],
    *,
    base_bytes: float,
    source: str,
    prior_ratio: float,
    spread: float,
) -> MemoryModel:
    """Fit the model to `points` (batch, measured demand in bytes), by linear regression with a prior on both unknowns.

    Without a point: the base measured after a tiny step, and the prior ratio. Points move both according to their uncertainty:
    one at a small batch moves the base, one at a large batch the ratio, two near one another make no slope out of noise. If the
    base is wrong, the line through the points themselves is used. The model meets the largest point exactly, since all requests
    continue from there.
    """
    measurements = tuple(sorted(dict(points).items()))
    model = MemoryModel(base_bytes=base_bytes, ratio=prior_ratio, shape=tuple(shape), source=source, spread=spread)
    if not measurements:
        return model
    heap_demands = [(model.heap(batch), demand - model.mapped(batch)) for batch, demand in measurements]
    doubts = [POINT_DOUBT[0] + POINT_DOUBT[1] * prior_ratio * heap for heap, _ in heap_demands]
    base, ratio = _with_prior(heap_demands, doubts, base_bytes, prior_ratio)
    off = max(abs(demand - base - ratio * heap) / doubt for (heap, demand), doubt in zip(heap_demands, doubts, strict=True))
    if off > BELIEVED and max(heap for heap, _ in heap_demands) > LEVER * min(heap for heap, _ in heap_demands):
        free = _line(heap_demands)
        if free[1] > 0:
            base, ratio = free
    ratio = max(ratio, RATIO_LEAST)
    top_heap, top_demand = heap_demands[-1]
    fitted = model.model_copy(update={"base_bytes": top_demand - ratio * top_heap, "ratio": ratio, "points": measurements})
    error = max(abs(fitted.predict(batch) / demand - 1) for batch, demand in measurements)
    return fitted.model_copy(update={"relative_error": error if len(measurements) > 2 else None})


def _with_prior(
    heap_demands: Sequence[tuple[float, float]], doubts: Sequence[float], base_bytes: float, prior_ratio: float
) -> tuple[float, float]:
    """Base and ratio with the highest posterior probability: two normal equations."""
    base_doubt = BASE_DOUBT[0] + BASE_DOUBT[1] * base_bytes
    of_base, of_ratio, of_both = 1 / base_doubt**2, 1 / RATIO_DOUBT**2, 0.0
    right_base, right_ratio = (base_bytes + OVERHEAD) * of_base, prior_ratio * of_ratio
    for (heap, demand), doubt in zip(heap_demands, doubts, strict=True):
        weight = 1 / doubt**2
        of_base += weight
        of_ratio += weight * heap * heap
        of_both += weight * heap
        right_base += weight * demand
        right_ratio += weight * heap * demand
    determinant = of_base * of_ratio - of_both**2
    base = (right_base * of_ratio - right_ratio * of_both) / determinant
    return base, (of_base * right_ratio - of_both * right_base) / determinant


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope by least squares, weighted by the size on paper: the model is used for large batches."""
    weight = sum(x for x, _ in points)
    mean_x = sum(x * x for x, _ in points) / weight
    mean_y = sum(x * y for x, y in points) / weight
    slope = sum(x * (x - mean_x) * (y - mean_y) for x, y in points) / sum(x * (x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope
