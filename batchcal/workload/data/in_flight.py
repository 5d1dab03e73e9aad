"""Batches of DataLoader workers that exist at once, and how much of /dev/shm they may take."""

from __future__ import annotations

from typing import Final

PREFETCH_FACTOR: Final = 2
"""Batches that a worker reads ahead: torch's own default."""
SHM_SHARE: Final = 0.8
"""Share of the free space of /dev/shm that batches may use; the rest is for tensors that stay in the training process and for
other processes."""


def batches_in_flight(workers: int, prefetch_factor: int) -> int:
    """Batches that were requested from the workers and not delivered (torch requests no more), plus the one in use."""
    return workers * prefetch_factor + 1
