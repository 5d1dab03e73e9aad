"""Count of the blocks that are lost to handles of workers' batches: its batch and its time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.core.units import MIB

SMALLEST_BATCH: Final = 7
"""Samples, before they are multiplied: the smallest prime that small layers (2, 3, 5 channels or classes) rarely have."""
LARGEST_BATCH: Final = 1021
"""Samples, before they are multiplied. Blocks of a task that takes less than 1 KiB per sample are not worth more."""
LEAST_BYTES: Final = 1 * MIB
"""Minimum that a batch takes on paper beyond what every step takes, bytes. 64 lost blocks of such a step are several times the
normal growth of a process. With 7 samples of 0.004 MiB they were not: the count was 0 in one run and 64 in the next."""
LEAST_SHARE: Final = 0.03
"""Minimum of the same as a share of what every step takes. The peaks of a training differ by up to 8 % of that: 64 blocks, each a
fifth of what the batch takes, are several times as much."""
LIMIT_S: Final = 9.0
SHARE_OF_TIME: Final = 0.15
"""Limits: seconds, and share of the remaining time. Ten tasks of the zoo took 2 to 7 s, including the start of the process."""
GRACE_S: Final = 5.0
"""Extra time to finish a step that has started."""
FEW: Final = 2
SPREAD: Final = 4
"""For each counted block above FEW, a training may lose SPREAD more. One MLP lost 13 to 67 in 18 runs with batches of 97 to 499
and two tensors in each, where 64 can be lost. Tasks that grow as they do without workers (a U-Net, a residual network, a GRU,
documents, graphs) lost 0 to 2; convolutions over compressed texts lost 2 to 3 of 128, a contrastive model 8 to 9 of 64."""
UNKNOWN: Final = (
    "the number of heap blocks that are lost to batches from workers is unknown; "
    "the measurement assumes the largest possible number"
)


def counting_batch(shape: Sequence[ShapePoint], *, smallest: int = 1, multiple_of: int = 1, most: int | None = None) -> int:
    """Return a small batch that takes LEAST_BYTES and LEAST_SHARE, or as large a one as allowed.

    It is `multiple_of` times a prime number, because sizes of layers are rarely multiples of it: a dimension that is a multiple
    of it is the batch dimension.

    Args:
        shape: static curve of training, which is extended beyond its last point. Empty: unknown.
        smallest, most: sizes that the task accepts. None: no upper limit.
    """
    limit = min(LARGEST_BATCH * multiple_of, most or LARGEST_BATCH * multiple_of)
    primes = (samples for samples in count(max(SMALLEST_BATCH, -(-smallest // multiple_of))) if is_prime(samples))
    if not shape:
        return next(primes) * multiple_of
    model = MemoryModel(base_bytes=0.0, ratio=1.0, shape=tuple(shape), source="")
    any_step = model.on_paper(min(point.batch for point in shape))
    least = max(LEAST_BYTES, any_step * LEAST_SHARE)
    batch = next(primes) * multiple_of
    while model.on_paper(batch) - any_step < least and (larger := next(primes) * multiple_of) <= limit:
        batch = larger
    return batch


def may_be_lost(counted: int, most: int) -> int:
    """Return the number of blocks that a training may lose if `counted` were counted, at most `most`."""
    return min(most, counted + SPREAD * max(0, counted - FEW))


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
