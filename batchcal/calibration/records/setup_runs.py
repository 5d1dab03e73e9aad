"""Summary of all probes of one setup, with the spread between runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal, Self

from batchcal.core.values import Record
from batchcal.values.setup import Count


class Quantiles(Record):
    """Quantiles of one quantity over several runs, in its unit."""

    least: float
    median: float
    p90: float
    """90th percentile, interpolated."""
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Quantiles of `values` (at least one)."""
        ordered = sorted(values)
        p90 = statistics.quantiles(ordered, n=10, method="inclusive")[-1] if len(ordered) > 1 else ordered[0]
        return cls(least=ordered[0], median=statistics.median(ordered), p90=p90, greatest=ordered[-1])


class SetupRuns(Record):
    """Outcomes, peaks and times of the probes of one setup."""

    device: str
    allocator: str
    mode: Literal["train", "eval"]
    batch: Count
    """Samples in a micro-batch, of training or of evaluation."""
    num_workers: Count
    count: Count
    """Number of runs."""
    outcomes: dict[str, Count]
    """Number of runs by `kind` of the outcome."""
    peak_bytes: Quantiles | None
    """Peak memory on `device` of the runs that fit. None: none fits."""
    step_s: Quantiles | None
    """Median seconds of a step of the same runs."""
