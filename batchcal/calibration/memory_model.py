"""How much memory a batch takes: the shape from a static curve, base and ratio from real probes."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from batchcal.core.values import Record

UNBOUNDED: Final = 1 << 20
"""Ceiling where nothing but memory bounds a batch."""


class ShapePoint(Record):
    """Bytes that a batch needs on paper: tensors only, no libraries, no fragmentation."""

    batch: int
    bytes: float
    mapped_bytes: float = 0.0
    """Those of `bytes` in blocks so large that the allocator maps each by itself: they cost what they are, no more."""


class MemoryModel(Record):
    """demand(batch) = base + mapped(batch) + ratio x heap(batch), each piecewise linear between the points of `shape`.

    `heap` is what of the shape is not mapped by itself; under most policies that is all of it. A shape that is a straight line
    is two points. Beyond the last point the last slope goes on.
    """

    base_bytes: float
    ratio: float
    """Resident over on-paper bytes of the heap."""
    shape: tuple[ShapePoint, ...]
    source: str
    """Where the shape came from: `fake-tensor`, `profiler`, `measured`."""
    points: tuple[tuple[int, int], ...] = ()
    """(batch, measured demand in bytes) that base and ratio were fitted to."""
    relative_error: float | None = None
    """Largest |predicted / measured - 1| over the points. None: fewer points than unknowns + 1."""
    spread: float = 0.0
    """Run-to-run spread of the allocator policy, as a fraction of the heap. A prediction is this uncertain at least."""

    def on_paper(self, batch: float) -> float:
        """Bytes of the shape at `batch`."""
        return self._between(batch)[0]

    def mapped(self, batch: float) -> float:
        """Bytes of the shape at `batch` that are mapped by themselves."""
        return self._between(batch)[1]

    def heap(self, batch: float) -> float:
        """Bytes of the shape at `batch` that come from the heap."""
        total, mapped = self._between(batch)
        return max(0.0, total - mapped)

    def mapped_share(self, batch: float) -> float:
        """Of what `batch` takes beyond the base: the share that is mapped by itself."""
        total, mapped = self._between(batch)
        taken = mapped + self.ratio * max(0.0, total - mapped)
        return mapped / taken if taken > 0 else 0.0

    def predict(self, batch: float) -> float:
        """Demand in bytes at `batch`."""
        total, mapped = self._between(batch)
        return self.base_bytes + mapped + self.ratio * max(0.0, total - mapped)

    def largest_within(self, budget_bytes: float, *, ceiling: int) -> int:
        """The largest batch in [0, ceiling] whose predicted demand is at most `budget_bytes`. 0: none.

        Demand need not grow with the batch: a block that passes the allocator's threshold fragments no more. What is asked for
        is the largest batch, so the pieces of the shape are looked at from above.
        """
        corners = sorted({0, ceiling, *(point.batch for point in self.shape if point.batch < ceiling)})
        for low, high in zip(reversed(corners[:-1]), reversed(corners[1:]), strict=True):
            if self.predict(high) <= budget_bytes:
                return high
            if low < high - 1 and self.predict(low) <= budget_bytes:
                return self._last_within(low, high, budget_bytes)
        return 0

    def _last_within(self, low: int, high: int, budget_bytes: float) -> int:
        """Between a batch that is within and one that is not, on one straight piece."""
        while high - low > 1:
            middle = (low + high) // 2
            if self.predict(middle) <= budget_bytes:
                low = middle
            else:
                high = middle
        return low

    def _between(self, batch: float) -> tuple[float, float]:
        """On paper, and what of it is mapped by itself."""
        if len(self.shape) == 1:
            only, part = self.shape[0], batch / self.shape[0].batch
            return only.bytes * part, only.mapped_bytes * part
        batches = [point.batch for point in self.shape]
        right = min(max(bisect_left(batches, batch), 1), len(batches) - 1)
        low, high = self.shape[right - 1], self.shape[right]
        part = (batch - low.batch) / (high.batch - low.batch)
        return (
            low.bytes + (high.bytes - low.bytes) * part,
            max(0.0, low.mapped_bytes + (high.mapped_bytes - low.mapped_bytes) * part),
        )
