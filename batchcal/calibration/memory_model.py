"""How much memory a batch takes: the shape from a static curve, base and ratio from real probes."""

from __future__ import annotations

from bisect import bisect_left

from batchcal.core.values import Record


class ShapePoint(Record):
    """Bytes that a batch needs on paper: tensors only, no libraries, no fragmentation."""

    batch: int
    bytes: float


class MemoryModel(Record):
    """demand(batch) = base + ratio x shape(batch), shape piecewise linear between `shape` points.

    A shape that is a straight line is two points. Beyond the last point the last slope goes on.
    """

    base_bytes: float
    ratio: float
    shape: tuple[ShapePoint, ...]
    source: str
    """Where the shape came from: `fake-tensor`, `profiler`, `measured`."""
    points: tuple[tuple[int, int], ...] = ()
    """(batch, measured demand in bytes) that base and ratio were fitted to."""
    relative_error: float | None = None
    """Largest |predicted / measured - 1| over the points. None: fewer points than unknowns + 1."""
    spread: float = 0.0
    """Run-to-run spread of the allocator policy, as a fraction of the variable part. A prediction is this uncertain at least."""

    def on_paper(self, batch: float) -> float:
        """Bytes of the shape at `batch`."""
        if len(self.shape) == 1:
            return self.shape[0].bytes * batch / self.shape[0].batch
        batches = [point.batch for point in self.shape]
        right = min(max(bisect_left(batches, batch), 1), len(batches) - 1)
        low, high = self.shape[right - 1], self.shape[right]
        slope = (high.bytes - low.bytes) / (high.batch - low.batch)
        return low.bytes + slope * (batch - low.batch)

    def predict(self, batch: float) -> float:
        """Demand in bytes at `batch`."""
        return self.base_bytes + self.ratio * self.on_paper(batch)

    def largest_within(self, budget_bytes: float, *, ceiling: int) -> int:
        """The largest batch in [0, ceiling] whose predicted demand is at most `budget_bytes`. 0: none."""
        low, high = 0, ceiling + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.predict(middle) <= budget_bytes:
                low = middle
            else:
                high = middle
        return low
