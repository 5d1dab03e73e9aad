"""The peak of a training after many steps, from its peaks after the first ones.

Where shapes change from batch to batch, the heap does not come to rest within a few steps. oneDNN keeps what it prepared for each
shape, up to 1,024 of them (ONEDNN_PRIMITIVE_CACHE_CAPACITY), and glibc keeps small freed blocks for reuse: both lie between the
large blocks of a step, which find less and less room in one piece. Convolutions over texts of 20 to 3,000 words, 20 a batch, hold
697 MiB after 8 steps of the largest batch, and after 64, 256, 512 and 1,024 steps of random ones 765, 1,123, 1,288 and 1,331 MiB;
695 MiB after 512 steps without oneDNN. Batches of one shape settle within 4 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from batchcal.measure.heap.trial import HeapReading

SETTLED: Final = 4
"""Steps of one and the same batch, after which its peak does not grow any more."""
ENOUGH_STEPS: Final = 64
"""Fewer prove nothing: the peak of the texts above, 13 a batch, is 554 MiB after 4 steps, 556 after 32, 625 after 64, and 785
after 256."""
HORIZON: Final = 1024
"""Steps. The last doubling before brought 3 to 15 % (texts in convolutions, 10 to 20 a batch); longer loops were not measured."""
LOOK_BACK: Final = 4
"""The last two doublings."""
NOISE: Final = 0.08
"""Growth of what the batch takes that means nothing: the same loop peaks within 5-8 % of its middle (see `search.prior`)."""
NO_ROOM_NEEDED: Final = 4.0
"""No growth needs more than this factor of room. The largest that was seen is 2.4."""


def expected_peak(readings: Sequence[HeapReading]) -> int:
    """Bytes at the peak after HORIZON steps, if it grows with each doubling by the mean of two: the growth over the last two
    doublings, and over all. The peak grows in jumps, so that the first alone is up to 45 % too much for texts (in convolutions
    and in LSTMs, 13 to 60 a batch), and the second alone up to 17 % too little; their mean is 13 % too little to 34 % too much.
    """
    first, last = readings[0], readings[-1]
    before = [reading for reading in readings if reading.steps * LOOK_BACK <= last.steps]
    if not before or last.steps >= HORIZON:
        return last.peak_bytes
    each = (_each_doubling(before[-1], last) + _each_doubling(first, last)) / 2
    return last.peak_bytes + int(each * math.log2(HORIZON / last.steps))


def _each_doubling(first: HeapReading, last: HeapReading) -> float:
    return max(0, last.peak_bytes - first.peak_bytes) / math.log2(last.steps / first.steps)


def growth_factor(readings: Sequence[HeapReading], base_bytes: int) -> float | None:
    """How many times as much memory a batch takes after HORIZON steps as after SETTLED ones; 1: it does not grow. None: unknown.

    Args:
        base_bytes: what the process holds without a batch.
    """
    if len(readings) < 2:
        return None
    first, last = readings[0], readings[-1]
    settled = first.peak_bytes - base_bytes
    if last.steps < ENOUGH_STEPS and last.peak_bytes - first.peak_bytes <= settled * NOISE:
        return None
    factor = (expected_peak(readings) - base_bytes) / settled if settled > 0 else 1.0
    return factor if factor > 1 + NOISE else 1.0


def without_kept_samples(
    readings: Sequence[HeapReading], *, batch: int, kept_bytes_per_sample: float, samples: int | None
) -> tuple[HeapReading, ...]:
    """`readings` without the samples that the dataset keeps once it has read them: memory is reserved for those already.

    Args:
        samples: of the dataset. None: it has no length, and keeps none.
    """
    if not samples or not kept_bytes_per_sample:
        return tuple(readings)

    def kept(steps: int) -> int:
        """Bytes, of the distinct samples that are expected among so many random ones."""
        drawn = batch * (steps - SETTLED)
        return int(kept_bytes_per_sample * samples * (1 - math.exp(-drawn / samples)))

    return tuple(
        reading.model_copy(update={"peak_bytes": max(0, reading.peak_bytes - kept(reading.steps))}) for reading in readings
    )
