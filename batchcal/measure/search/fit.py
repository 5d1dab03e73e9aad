"""Fits base and ratio of a memory model to what was measured; the shape comes from the static curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.calibration.memory_model import MemoryModel, ShapePoint

RATIO_RANGE: Final = (0.4, 4.0)
"""Resident over on-paper bytes: 0.9-1.6 was seen. Outside of this range a point must stand out from the base to be believed."""
NOISE_SHARE: Final = 0.1
"""A demand this near to the base, as a share of it, is base and noise."""
LEVER: Final = (1.2, 20.0)
"""Two points this far apart on paper (first + second x spread) give a slope; nearer ones would turn noise into slope."""


def fit(
    shape: Sequence[ShapePoint],
    points: Sequence[tuple[int, int]],
    *,
    base_bytes: float,
    source: str,
    prior_ratio: float,
    spread: float,
) -> MemoryModel:
    """The model through `points` (batch, measured demand in bytes).

    None: base as seen after a tiny step and the prior ratio. One, or several near one another: base kept, ratio from the
    largest. Points that are far enough apart: the line through them, in which large ones weigh more.
    """
    kept = tuple(sorted(dict(points).items()))
    model = MemoryModel(base_bytes=base_bytes, ratio=prior_ratio, shape=tuple(shape), source=source, spread=spread)
    if not kept:
        return model
    top_batch, top_bytes = kept[-1]
    top_paper = model.on_paper(top_batch)
    base, ratio = base_bytes, (top_bytes - base_bytes) / top_paper
    if not RATIO_RANGE[0] <= ratio <= RATIO_RANGE[1] and top_bytes - base_bytes < NOISE_SHARE * base_bytes:
        # A point that is mostly base (a small batch beside a large model) says nothing about the slope.
        ratio = prior_ratio
        base = top_bytes - ratio * top_paper
    lever = LEVER[0] + LEVER[1] * spread
    if model.on_paper(kept[0][0]) * lever <= top_paper:
        line = _line([(model.on_paper(batch), float(demand)) for batch, demand in kept])
        if line[1] > 0:
            base, ratio = line
    fitted = model.model_copy(update={"base_bytes": base, "ratio": ratio, "points": kept})
    error = max(abs(fitted.predict(batch) / demand - 1) for batch, demand in kept)
    return fitted.model_copy(update={"relative_error": error if len(kept) > 2 else None})


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope by least squares, weighed by the paper size: the model is asked about large batches."""
    weight = sum(x for x, _ in points)
    mean_x = sum(x * x for x, _ in points) / weight
    mean_y = sum(x * y for x, y in points) / weight
    slope = sum(x * (x - mean_x) * (y - mean_y) for x, y in points) / sum(x * (x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope
