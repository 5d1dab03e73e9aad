"""Memory of a batch: the shape comes from a static curve, base and ratio come from real probes."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from batchcal.core.values import Record

UNBOUNDED: Final = 1 << 20
"""Ceiling of a batch that only memory limits."""


class ShapePoint(Record):
    """Bytes that a batch needs on paper: tensors only, no libraries, no fragmentation."""

    batch: int
    bytes: float
    mapped_bytes: float = 0.0
    """Part of `bytes` in blocks so large that the allocator maps each separately. They take exactly their size."""


class MemoryModel(Record):
    """demand(batch) = base + mapped(batch) + ratio x heap(batch), each piecewise linear between the points of `shape`.

    `heap` is the part of the shape that is not mapped separately; under most policies, that is all of it. A straight line has two
    points. Beyond the last point, the last slope continues.
    """

    base_bytes: float
    ratio: float
    """Resident bytes of the heap divided by its bytes on paper."""
    shape: tuple[ShapePoint, ...]
    source: str
    """Source of the shape: `fake-tensor`, `profiler`, `measured`."""
    points: tuple[tuple[int, int], ...] = ()
    """Pairs (batch, measured demand in bytes) to which base and ratio were fitted."""
    relative_error: float | None = None
    """Largest |predicted / measured - 1| over the points. None: fewer points than unknowns + 1."""
    spread: float = 0.0
    """Run-to-run spread of the allocator policy, as a fraction of the heap. A prediction is at least this uncertain."""

    def on_paper(self, batch: float) -> float:
        """Bytes of the shape at `batch`."""
        return self._between(batch)[0]

    def mapped(self, batch: float) -> float:
        """Bytes of the shape at `batch` that are mapped separately."""
        return self._between(batch)[1]

    def heap(self, batch: float) -> float:
        """Bytes of the shape at `batch` that come from the heap."""
        total, mapped = self._between(batch)
        return max(0.0, total - mapped)

    def mapped_share(self, batch: float) -> float:
        """Share of the memory of `batch` beyond the base that is mapped separately."""
        total, mapped = self._between(batch)
        used = mapped + self.ratio * max(0.0, total - mapped)
        return mapped / used if used > 0 else 0.0

    def predict(self, batch: float) -> float:
        """Demand in bytes at `batch`."""
        total, mapped = self._between(batch)
        return self.base_bytes + mapped + self.ratio * max(0.0, total - mapped)

    def largest_within(self, budget_bytes: float, *, ceiling: int) -> int:
        """Return the largest batch in [0, ceiling] whose predicted demand is at most `budget_bytes`. 0: none.

        Demand does not always grow with the batch: a block above the allocator's threshold no longer causes fragmentation. To
        find the largest batch, the search starts at the last piece of the shape.
        """
        corners = sorted({0, ceiling, *(point.batch for point in self.shape if point.batch < ceiling)})
        for low, high in zip(reversed(corners[:-1]), reversed(corners[1:]), strict=True):
            if self.predict(high) <= budget_bytes:
                return high
            if low < high - 1 and self.predict(low) <= budget_bytes:
                return self._last_within(low, high, budget_bytes)
        return 0

    def _last_within(self, low: int, high: int, budget_bytes: float) -> int:
        """Return the last batch within the budget, if `low` is within and `high` is not, on one straight piece."""
        while high - low > 1:
            middle = (low + high) // 2
            if self.predict(middle) <= budget_bytes:
                low = middle
            else:
                high = middle
        return low

    def _between(self, batch: float) -> tuple[float, float]:
        """Bytes on paper at `batch`, and the part of them that is mapped separately."""
        if len(self.shape) == 1:
            only, fraction = self.shape[0], batch / self.shape[0].batch
            return only.bytes * fraction, only.mapped_bytes * fraction
        batches = [point.batch for point in self.shape]
        right = min(max(bisect_left(batches, batch), 1), len(batches) - 1)
        low, high = self.shape[right - 1], self.shape[right]
        fraction = (batch - low.batch) / (high.batch - low.batch)
        return (
            low.bytes + (high.bytes - low.bytes) * fraction,
            max(0.0, low.mapped_bytes + (high.mapped_bytes - low.mapped_bytes) * fraction),
        )
