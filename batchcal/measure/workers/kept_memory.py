"""Memory that the process keeps of the samples that it reads."""

from __future__ import annotations

import random
import time
from collections.abc import Sized
from typing import Final

from torch.utils.data import Dataset, IterableDataset

from batchcal.machine.meters import ProcessMemory, read_status
from batchcal.measure.workers.growth import PARTS, MemoryPoint, kept_per_sample
from batchcal.workload.data.fetch import sample_at

READ_S: Final = 0.25
MOST_SAMPLES: Final = 20_000
READINGS: Final = 8 * PARTS


def kept_by_reading(data: Dataset[object], seed: int, *, read_s: float = READ_S) -> float:
    """Return the bytes that stay of each sample after reading, over as many shuffled samples as time allows. A stream: 0."""
    if isinstance(data, IterableDataset) or not isinstance(data, Sized):
        return 0.0
    points = [MemoryPoint(0, _memory_bytes())]
    start_s = last_s = time.monotonic()
    count = len(data)
    for read, index in enumerate(random.Random(seed).sample(range(count), min(count, MOST_SAMPLES)), start=1):
        sample_at(data, index)
        now = time.monotonic()
        if now - last_s >= read_s / READINGS:
            points.append(MemoryPoint(read, _memory_bytes()))
            last_s = now
        if now - start_s >= read_s:
            break
    return kept_per_sample(points)


def _memory_bytes() -> int:
    return (read_status() or ProcessMemory()).hard_bytes
