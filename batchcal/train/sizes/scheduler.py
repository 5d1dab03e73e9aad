"""Which micro-batches an optimizer step is made of, for the memory at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Within = Callable[[Sequence[int], float], int]
"""Indices, share of the planned size -> how many of them, from the first on, fit into that share. At least 1."""


class GradientAccumulationScheduler:
    """Trades micro-batch size for accumulation steps. The effective batch stays what it is, to the sample.

    Sizes are a share of the plan's, which is the upper bound: 0.25 of a micro-batch of 64 is 16, four times as many of them.

    Args:
        micro_batch: of the plan.
        start: micro-batch to begin with; default: the plan's.
        fixed: the planned sizes stay: a smaller micro-batch would train something else.
        within: how many samples of a micro-batch fit into a share of it, where that is not told by their number: those of padded
            batches are told by their cost.
    """

    def __init__(self, micro_batch: int, *, start: int | None = None, within: Within | None = None, fixed: bool = False) -> None:
        self.ceiling = micro_batch
        self._fixed = fixed
        self.share = 1.0
        self._within = within
        if start is not None:
            self.set(start)

    @property
    def by_count(self) -> bool:
        """Whether samples are counted, as those of equal cost are."""
        return self._within is None

    @property
    def micro_batch(self) -> int:
        """The largest that is allowed now."""
        return max(1, int(self.ceiling * self.share + 1e-9))

    def set(self, micro_batch: int) -> None:
        """Allows `micro_batch` samples from now on: no less than one, no more than planned. Does nothing where sizes stay."""
        if self._fixed:
            return
        self.share = min(max(micro_batch, 1), self.ceiling) / self.ceiling

    def allowed(self, indices: Sequence[int]) -> int:
        """How many of these samples, from the first on, may be in one micro-batch now. See `GroupSampler.limit`."""
        if self.share >= 1:
            return len(indices)
        return self.micro_batch if self._within is None else self._within(indices, self.share)
