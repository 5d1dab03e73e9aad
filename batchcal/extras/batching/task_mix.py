"""Task types of a dataset, their shares, and the sizes of their samples, learned from a limited number of samples."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from torch.utils.data import IterableDataset, default_collate

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.core.units import MIB, count_of
from batchcal.workload.data.fetch import sample_at
from batchcal.workload.data.sample_size import cost_of, listed_costs, nest_bytes
from batchcal.workload.task import Task

T = TypeVar("T")

EVERYTHING: Final = "all"
"""Name of the single type if the task defines none."""
LOOK_LIMIT: Final = 4096
"""Maximum number of samples to load."""
STREAM_LIMIT_BYTES: Final = 64 * MIB
"""Bytes of samples that are kept of a stream, since its samples cannot be read again."""


class SampleRecord(NamedTuple):
    """A sample. The cost is the first field, so that samples sort by it."""

    cost: float
    place: int
    """Index of the sample. For a stream: place among its first samples."""
    group: str


@dataclass(frozen=True, eq=False)
class Mix:
    """The loaded samples, and batches of them."""

    sampled: tuple[SampleRecord, ...]
    """Samples drawn at random, the cheapest first. They represent the dataset."""
    top: tuple[SampleRecord, ...]
    """All known samples, the costliest first."""
    samples: int | None
    """Number of samples in the dataset. None: a stream."""
    sample: Callable[[int], object]
    """place -> sample."""
    collate: Callable[..., object]

    def __post_init__(self) -> None:
        if not self.sampled:
            raise UserCodeError("the training data is empty", known="there is no sample to load")

    @classmethod
    def look(cls, task: Task, batch_size: int, *, limit_s: float, seed: int) -> Mix:
        """Load samples of the training data of `task` for about `limit_s` seconds.

        Args:
            batch_size: if `size_of` is a list of costs, this number of the costliest samples is loaded, too.

        Raises:
            UserCodeError: the dataset is empty, or `size_of` gave no cost. Errors of the dataset propagate unchanged.
        """
        data, size_of, group_of = task.train_data, task.size_of, task.group_of
        collate = default_collate if task.collate_fn is None else task.collate_fn

        def record(place: int, sample: object, cost: float) -> SampleRecord:
            return SampleRecord(cost, place, EVERYTHING if group_of is None else group_of(sample))

        if isinstance(data, IterableDataset) or not isinstance(data, Sized):
            of_sample = size_of if callable(size_of) else None
            samples = list(_within(_first(data), limit_s))
            sampled = [record(place, sample, cost_of(of_sample, sample)) for place, sample in enumerate(samples)]
            return cls(_rising(sampled), _rising(sampled)[::-1], None, samples.__getitem__, collate)

        count = len(data)
        costs = None if size_of is None or callable(size_of) else listed_costs(size_of, count)

        def load(place: int) -> SampleRecord:
            sample = sample_at(data, place)
            return record(place, sample, cost_of(size_of, sample) if costs is None else float(costs[place]))

        places = random.Random(seed).sample(range(count), min(count, LOOK_LIMIT))
        largest: list[int] = [] if costs is None else costs.topk(min(batch_size, LOOK_LIMIT, count)).indices.tolist()
        sampled, top = (list(_within(map(load, selected), limit_s)) for selected in (places, largest))
        return cls(_rising(sampled), _rising({*top, *sampled})[::-1], count, lambda place: data[place], collate)

    def shares(self, distribution: Mapping[str, float] | None) -> dict[str, float]:
        """Return the shares of the requested task types by name. They sum to 1.

        Raises:
            UsageError: a type without a loaded sample, an invalid share, or no share above 0.
        """
        counts = Counter(sample.group for sample in self.sampled)
        requested: Mapping[str, float] = counts if distribution is None else distribution
        unknown = [name for name in requested if name not in {sample.group for sample in self.top}]
        if unknown:
            raise UsageError(
                f"no loaded sample has the task type {unknown[0]!r}",
                known=f"the task types are {', '.join(sorted(counts))}"
                + ("" if self._complete else f", in {count_of(len(self.sampled), 'loaded sample')}"),
            )
        total = sum(requested.values())
        if not 0 < total < math.inf or any(not 0 <= share < math.inf for share in requested.values()):
            raise UsageError("shares of task types must be 0 or more, and not all 0", try_="{'T1': 0.5, 'T2': 0.5}")
        return {name: requested[name] / total for name in sorted(requested) if requested[name] > 0}

    def typical(self, size: int, shares: Mapping[str, float]) -> object:
        """Return a batch of `size` samples: each type by its share, evenly spread over the costs of the type."""
        places: list[int] = []
        for name, count in _apportioned(size, shares).items():
            of_type = [sample.place for sample in self.sampled if sample.group == name] or [
                sample.place for sample in self.top if sample.group == name
            ]
            places += [of_type[int((part + 0.5) * len(of_type) / count)] for part in range(count)]
        return self.collate([self.sample(place) for place in places])

    def largest(self, size: int, shares: Mapping[str, float]) -> object:
        """Return a batch of the `size` costliest known samples of these types. The costliest of each type come first, so that the
        batch uses every part of the model. If fewer samples are known, the costliest one is repeated."""
        allowed = [sample for sample in self.top if sample.group in shares]
        first: dict[str, SampleRecord] = {}
        for sample in allowed:
            first.setdefault(sample.group, sample)
        places = [sample.place for sample in dict.fromkeys([*first.values(), *allowed])][:size]
        return self.collate([self.sample(place) for place in places + places[:1] * (size - len(places))])

    def mean_cost(self, group: str) -> float:
        """Return the mean cost of the samples of one type."""
        costs = [sample.cost for sample in self.sampled if sample.group == group] or [
            sample.cost for sample in self.top if sample.group == group
        ]
        return sum(costs) / len(costs)

    def notes(self) -> Iterator[str]:
        """Yield remarks on the selection of the samples."""
        if self.samples is None:
            yield f"the data is a stream: its first {count_of(len(self.sampled), 'sample')} represent all samples"
        elif not self._complete:
            yield f"{len(self.sampled)} of {count_of(self.samples, 'sample')} were loaded: a larger one may exist"

    @property
    def _complete(self) -> bool:
        return len(self.sampled) == self.samples


def _rising(samples: Iterable[SampleRecord]) -> tuple[SampleRecord, ...]:
    return tuple(sorted(samples))


def _apportioned(size: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divide `size` samples by shares that sum to 1, with the largest remainder method."""
    counts = {name: int(size * share) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: counts[name] - size * shares[name])
    for name in by_rest[: size - sum(counts.values())]:
        counts[name] += 1
    return {name: count for name, count in counts.items() if count}


def _first(stream: object) -> Iterator[object]:
    """Yield the first samples within the limits."""
    if not isinstance(stream, Iterable):
        return
    total_bytes = 0
    for sample in islice(stream, LOOK_LIMIT):
        yield sample
        total_bytes += nest_bytes(sample)
        if total_bytes >= STREAM_LIMIT_BYTES:
            return


def _within(items: Iterator[T], limit_s: float) -> Iterator[T]:
    """Yield items until the time limit; the first one in any case."""
    ends = time.monotonic() + limit_s
    for item in items:
        yield item
        if time.monotonic() > ends:
            return
