"""How the blocks that are lost to handles of workers' batches are counted: with which batch, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final

from batchcal.calibration.memory_model import MemoryModel, ShapePoint
from batchcal.core.units import MIB

SMALLEST_BATCH: Final = 7
LEAST_BYTES: Final = 1 * MIB
"""That a batch takes on paper, beyond what every step takes. 64 lost blocks of such a step are several times as large as what a
process grows by anyway. With 7 samples of 0.004 MiB they were not, and the count was 0 in one run and 64 in the next."""
LIMIT_S: Final = 9.0
SHARE_OF_TIME: Final = 0.15
"""Seconds, and share of the time left: with the start of the process ten tasks of the zoo took 2 to 7 s."""
SPREAD: Final = 4
"""A training may lose so many times as many blocks as were counted. One MLP lost 13 to 67 of 64 in 18 runs with batches of 97 to
499; three tasks that grow as they do without workers, none to 3."""
UNKNOWN: Final = (
    "how many blocks of the heap are lost to batches from workers is not known: room for as many as there can be is left free"
)


def counting_batch(shape: Sequence[ShapePoint], multiple_of: int) -> int:
    """A small batch that takes LEAST_BYTES, times `multiple_of`: a prime number of samples, of which sizes of layers are hardly
    ever multiples. A dimension that is a multiple of it is that of the batch.

    Args:
        shape: the static curve of training. Empty: unknown, and the batch is the smallest.
    """
    if not shape:
        return SMALLEST_BATCH * multiple_of
    model = MemoryModel(base_bytes=0.0, ratio=1.0, shape=tuple(shape), source="")
    traced = [point.batch for point in shape]
    any_step = model.on_paper(min(traced))
    batches = (samples * multiple_of for samples in count(SMALLEST_BATCH) if is_prime(samples))
    return next(batch for batch in batches if batch >= max(traced) or model.on_paper(batch) - any_step >= LEAST_BYTES)


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
