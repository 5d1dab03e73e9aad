"""The peak of a training after many steps, extrapolated from its peaks after the first ones.

If shapes change from batch to batch, the heap does not settle within a few steps. oneDNN keeps what it prepares for each shape,
up to 1,024 of them (ONEDNN_PRIMITIVE_CACHE_CAPACITY), and glibc keeps small freed blocks for reuse. Both lie between the large
blocks of a step, which have less and less contiguous room. Convolutions over texts of 20 to 3,000 words, 20 per batch, hold
697 MiB after 8 steps of the largest batch, and 765, 1,123, 1,288 and 1,331 MiB after 64, 256, 512 and 1,024 steps of random ones;
without oneDNN 695 MiB after 512 steps. Batches of one shape settle within 4 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from batchcal.measure.heap.trial import HeapReading

SETTLED: Final = 4
"""Steps of the same batch after which its peak stops growing."""
ENOUGH_STEPS: Final = 64
"""Minimum number of steps that prove anything: the peak of the texts above, 13 per batch, is 554 MiB after 4 steps, 556 after 32,
625 after 64, and 785 after 256."""
HORIZON: Final = 1024
"""Steps. The last doubling before added 3 to 15 % (texts in convolutions, 10 to 20 per batch). Longer loops were not measured."""
LOOK_BACK: Final = 4
"""Factor of steps to look back: the last two doublings."""
NOISE: Final = 0.08
"""Share of the memory of a batch. Less growth is noise: the same loop peaks within 5-8 % of its middle (see `search.prior`)."""
NO_ROOM_NEEDED: Final = 4.0
"""No growth needs more than this factor of room. The largest observed growth is 2.4."""


def expected_peak(readings: Sequence[HeapReading]) -> int:
    """Return the expected peak after HORIZON steps, bytes. Each doubling adds the mean of two growths: over the last two
    doublings, and over all. The peak grows in jumps. For texts (in convolutions and in LSTMs, 13 to 60 per batch), the first
    alone gives up to 45 % too much, and the second alone up to 17 % too little; their mean gives 13 % too little to 34 % too
    much."""
    first, last = readings[0], readings[-1]
    before = [reading for reading in readings if reading.steps * LOOK_BACK <= last.steps]
    if not before or last.steps >= HORIZON:
        return last.peak_bytes
    each = (_each_doubling(before[-1], last) + _each_doubling(first, last)) / 2
    return last.peak_bytes + int(each * math.log2(HORIZON / last.steps))


def _each_doubling(first: HeapReading, last: HeapReading) -> float:
    return max(0, last.peak_bytes - first.peak_bytes) / math.log2(last.steps / first.steps)


def growth_factor(readings: Sequence[HeapReading], base_bytes: int) -> float | None:
    """Return the memory of a batch after HORIZON steps, as a multiple of that after SETTLED ones. 1: no growth. None: unknown.

    Args:
        base_bytes: memory of the process without a batch.
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
    """Return `readings` without the samples that the dataset keeps after reading them: memory for those is already reserved.

    Args:
        samples: number of samples in the dataset. None: it has no length, and keeps none.
    """
    if not samples or not kept_bytes_per_sample:
        return tuple(readings)

    def kept_bytes(steps: int) -> int:
        """Bytes of the distinct samples that are expected after so many steps with random samples."""
        samples_read = batch * (steps - SETTLED)
        return int(kept_bytes_per_sample * samples * (1 - math.exp(-samples_read / samples)))

    return tuple(
        reading.model_copy(update={"peak_bytes": max(0, reading.peak_bytes - kept_bytes(reading.steps))}) for reading in readings
    )
