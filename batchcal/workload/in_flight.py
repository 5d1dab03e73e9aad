"""Batches of DataLoader workers that exist at once, and how much of /dev/shm they may take."""

from __future__ import annotations

from typing import Final

PREFETCH_FACTOR: Final = 2
"""Batches that a worker reads ahead: torch's own default."""
SHM_SHARE: Final = 0.8
"""Of the free space of /dev/shm; the rest is for tensors that live on in the training process and for other users."""


def batches_in_flight(workers: int, prefetch_factor: int) -> int:
    """What the workers were asked for and have not delivered (torch asks for no more than this), and the one in use."""
    return workers * prefetch_factor + 1
