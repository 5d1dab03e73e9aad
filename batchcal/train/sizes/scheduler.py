"""Micro-batches of an optimizer step, for the available memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Within = Callable[[Sequence[int], float], int]
"""Indices, share of the planned size -> number of them, from the first on, that fit into that share. At least 1."""


class GradientAccumulationScheduler:
    """Scheduler that trades micro-batch size for accumulation steps. The effective batch stays the same, to the sample.

    Sizes are a share of the plan's, which is the upper bound: 0.25 of a micro-batch of 64 is 16, and four times as many of them.

    Args:
        micro_batch: micro-batch of the plan.
        start: initial micro-batch. None: the plan's.
        fixed: keep the planned sizes, since smaller micro-batches would give a different training.
        within: number of samples of a micro-batch that fit into a share of it. None: determined by their number. Padded batches
            are determined by the costs of their samples.
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
        """True if sizes are numbers of samples, as for samples of equal cost."""
        return self._within is None

    @property
    def micro_batch(self) -> int:
        """Largest micro-batch that is allowed now."""
        return max(1, int(self.ceiling * self.share + 1e-9))

    def set(self, micro_batch: int) -> None:
        """Allow `micro_batch` samples from now on, at least one and at most the plan's. No effect if sizes are fixed."""
        if self._fixed:
            return
        self.share = min(max(micro_batch, 1), self.ceiling) / self.ceiling

    def allowed(self, indices: Sequence[int]) -> int:
        """Return how many of these samples, from the first on, one micro-batch may contain now. See `GroupSampler.limit`."""
        if self.share >= 1:
            return len(indices)
        return self.micro_batch if self._within is None else self._within(indices, self.share)
