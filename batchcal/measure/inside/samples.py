"""A few samples of the training data, kept in memory to make batches of them and of their parts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Final

from torch.utils.data import IterableDataset, default_collate

from batchcal.core.units import MIB
from batchcal.workload.data.fetch import tolerant
from batchcal.workload.data.sample_size import elements, nest_bytes
from batchcal.workload.task import Task

POOL: Final = 64
"""Number of samples to choose from: 98 % of pools contain some of a rare kind (1 in 16)."""
POOL_LIMIT_S: Final = 0.12
"""Seconds for reading them. Eight are read in any case."""
POOL_LIMIT_BYTES: Final = 64 * MIB
"""Bytes for keeping them. The samples of one batch are kept in any case."""
LEAST: Final = 8


class Draw:
    """Samples of one batch, in an order that does not collect a kind at one end."""

    def __init__(self, size: int, batch: Callable[[int, int], object]) -> None:
        self.size = size
        self.batch = batch
        """(begin, end) -> the samples of this range, collated."""


class Samples:
    """A pool of samples of different sizes.

    Raises:
        Any error that the dataset raises.
    """

    def __init__(self, task: Task, *, seed: int, most: int = POOL) -> None:
        self._collate: Callable[..., object] = tolerant(task.collate_fn) or default_collate
        self._seed = seed
        self._fetch_batch: Callable[[list[int]], object] | None = None
        self._pool: list[object] = []
        """Samples, or their indices if the dataset fetches complete batches only."""
        end_s, pool_bytes = time.monotonic() + POOL_LIMIT_S, 0
        for sample in self._read(task):
            self._pool.append(sample)
            pool_bytes += nest_bytes(sample)
            enough = time.monotonic() > end_s or pool_bytes > POOL_LIMIT_BYTES
            if len(self._pool) >= most or (len(self._pool) >= LEAST and enough):
                break
        if self._fetch_batch is None:
            self._pool.sort(key=elements)

    @property
    def count(self) -> int:
        """Number of samples to choose from."""
        return len(self._pool)

    def draw(self, size: int, number: int, *, of: int) -> Draw:
        """Return batch `number` of `of`, shuffled: its samples are spread over all sizes in the pool. The first has the smallest
        and the largest: if all texts have one length except for one in ten, a batch without a long one shows nothing."""
        last = len(self._pool) - 1
        if number == 0:
            places = [round(place * last / max(1, size - 1)) for place in range(size)]
        else:
            places = [min(last, int((place + number / of) * (last + 1) / size)) for place in range(size)]
        random.Random(self._seed + number).shuffle(places)
        return Draw(size, lambda begin, end: self._batch(places[begin:end]))

    def _batch(self, places: Sequence[int]) -> object:
        chosen = [self._pool[place] for place in places]
        if self._fetch_batch is None:
            return self._collate(chosen)
        return self._collate(self._fetch_batch([index for index in chosen if isinstance(index, int)]))

    def _read(self, task: Task) -> Iterator[object]:
        data = task.train_data
        if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
            yield from data if isinstance(data, Iterable) else ()
            return
        samples = len(data) if isinstance(data, Sized) else 0
        indices = random.Random(self._seed).sample(range(samples), min(POOL, samples))
        fetch_batch: Callable[[list[int]], object] | None = getattr(data, "__getitems__", None)
        if fetch_batch is None:
            yield from map(data.__getitem__, indices)
            return
        first = fetch_batch(indices[:LEAST])
        if not isinstance(first, list) or len(first) != len(indices[:LEAST]):
            self._fetch_batch = fetch_batch
            yield from indices
            return
        yield from first
        for index in indices[LEAST:]:
            fetched = fetch_batch([index])
            yield from fetched if isinstance(fetched, list) else ()
