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
LEAST_SHARE: Final = 0.03
"""Nor less of what every step takes, of which the peaks of a training differ by up to 8 %: 64 blocks, each a fifth of what the
batch takes, are several times as much."""
LIMIT_S: Final = 9.0
SHARE_OF_TIME: Final = 0.15
"""Seconds, and share of the time left: with the start of the process ten tasks of the zoo took 2 to 7 s."""
FEW: Final = 2
SPREAD: Final = 4
"""A training may lose so many more for each block above a few that were counted. One MLP lost 13 to 67 in 18 runs with batches of
97 to 499 and two tensors in each, where 64 can be lost; tasks that grow as they do without workers (a U-Net, a residual network,
a GRU, documents, graphs) none to 2."""
UNKNOWN: Final = (
    "how many blocks of the heap are lost to batches from workers is not known: room for as many as there can be is left free"
)


def counting_batch(shape: Sequence[ShapePoint], multiple_of: int) -> int:
    """A small batch that takes LEAST_BYTES and LEAST_SHARE.

    It is `multiple_of` times a prime number, of which sizes of layers are hardly ever multiples: a dimension that is a multiple
    of it is that of the batch.

    Args:
        shape: the static curve of training. Empty: unknown, and the batch is the smallest.
    """
    if not shape:
        return SMALLEST_BATCH * multiple_of
    model = MemoryModel(base_bytes=0.0, ratio=1.0, shape=tuple(shape), source="")
    traced = [point.batch for point in shape]
    any_step = model.on_paper(min(traced))
    least = max(LEAST_BYTES, any_step * LEAST_SHARE)
    batches = (samples * multiple_of for samples in count(SMALLEST_BATCH) if is_prime(samples))
    return next(batch for batch in batches if batch >= max(traced) or model.on_paper(batch) - any_step >= least)


def may_be_lost(counted: int, most: int) -> int:
    """Blocks that a training may lose, if a count gave so many: `most` at most."""
    return min(most, counted + SPREAD * max(0, counted - FEW))


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
