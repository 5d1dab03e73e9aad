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

    None: base as seen after a tiny step and the prior ratio. One: base kept, ratio from the point. More: the line through the
    largest point and the nearest one that is far enough below it, since errors near the budget cost most.
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
    below = [(batch, demand) for batch, demand in kept[:-1] if model.on_paper(batch) * lever <= top_paper]
    if below:
        low_batch, low_bytes = below[-1]
        slope = (top_bytes - low_bytes) / (top_paper - model.on_paper(low_batch))
        if slope > 0:
            base, ratio = top_bytes - slope * top_paper, slope
    fitted = model.model_copy(update={"base_bytes": base, "ratio": ratio, "points": kept})
    error = max(abs(fitted.predict(batch) / demand - 1) for batch, demand in kept)
    return fitted.model_copy(update={"relative_error": error if len(kept) > 2 else None})
