"""Curve of memory against batch, from the blocks that a step holds at once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint

MAPPED_FROM: Final = 32 << 20
"""Bytes. glibc always maps a block of this size or more alone: its threshold moves up to here and no further (mallopt(3))."""
COUNTED: Final = 0.01
"""Blocks of one size that together hold less than this share of a peak have no corner in a curve."""
REACH: Final = 64
"""Corners are computed up to this multiple of the largest traced batch."""


def curve_of(peaks: Mapping[int, Sequence[int]]) -> tuple[ShapePoint, ...]:
    """Return a memory curve through the traced `peaks` (batch -> sizes of the blocks), with a corner wherever blocks of one size
    grow to MAPPED_FROM. Up to a traced batch, and beyond the last, its blocks are assumed to grow with the batch."""
    sizes = sorted(peaks)
    if len(sizes) < 2:
        return tuple(_at(size, peaks[size], size, float(sum(peaks[size]))) for size in sizes)
    traced = MemoryModel(
        base_bytes=0.0, ratio=1.0, shape=tuple(ShapePoint(batch=size, bytes=sum(peaks[size])) for size in sizes), source=""
    )
    traced_batches: dict[int, int] = {size: size for size in sizes}
    """Batch of a point -> the traced batch whose blocks determine its mapped part."""
    for low, high in itertools.pairwise([0, *sizes]):
        traced_batches.update(dict.fromkeys(_corners(peaks[high], high, low, high), high))
    last = sizes[-1]
    if beyond := _corners(peaks[last], last, last, last * REACH):
        # One more point, so that the slope beyond is that of the blocks and not that of the last corner.
        traced_batches.update(dict.fromkeys([*beyond, 2 * max(beyond)], last))
    return tuple(_at(batch, peaks[of], of, traced.on_paper(batch)) for batch, of in sorted(traced_batches.items()))


def _at(batch: int, blocks: Sequence[int], of: int, on_paper: float) -> ShapePoint:
    """Return the point at `batch`. Its mapped part of the bytes on paper is that of `blocks`, traced at the batch `of`."""
    grown = [size * batch / of for size in blocks]
    return ShapePoint(batch=batch, bytes=on_paper, mapped_bytes=min(on_paper, sum(size for size in grown if size >= MAPPED_FROM)))


def _corners(blocks: Sequence[int], traced_at: int, low: int, high: int) -> list[int]:
    """Return the batches in (low, high] at which blocks of one size pass the threshold, each with the batch before it."""
    counts, total = Counter(blocks), sum(blocks)
    passing = {
        math.ceil(MAPPED_FROM * traced_at / size) for size, count in counts.items() if size * count >= COUNTED * max(total, 1)
    }
    return sorted({batch for at in passing if low + 1 < at <= high for batch in (at - 1, at)})
