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


class Known(NamedTuple):
    """A sample. The cost is the first field, so that samples sort by it."""

    cost: float
    place: int
    """Index of the sample. For a stream: place among its first samples."""
    group: str


@dataclass(frozen=True, eq=False)
class Mix:
    """The loaded samples, and batches of them."""

    drawn: tuple[Known, ...]
    """Samples drawn at random, the cheapest first. They represent the dataset."""
    top: tuple[Known, ...]
    """All known samples, the costliest first."""
    samples: int | None
    """Number of samples in the dataset. None: a stream."""
    sample: Callable[[int], object]
    """place -> sample."""
    collate: Callable[..., object]

    def __post_init__(self) -> None:
        if not self.drawn:
            raise UserCodeError("the training data is empty", known="there is no sample to look at")

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

        def known(place: int, sample: object, cost: float) -> Known:
            return Known(cost, place, EVERYTHING if group_of is None else group_of(sample))

        if isinstance(data, IterableDataset) or not isinstance(data, Sized):
            of_sample = size_of if callable(size_of) else None
            kept = list(_within(_first(data), limit_s))
            drawn = [known(place, sample, cost_of(of_sample, sample)) for place, sample in enumerate(kept)]
            return cls(_rising(drawn), _rising(drawn)[::-1], None, kept.__getitem__, collate)

        count = len(data)
        costs = None if size_of is None or callable(size_of) else listed_costs(size_of, count)

        def looked_at(place: int) -> Known:
            sample = sample_at(data, place)
            return known(place, sample, cost_of(size_of, sample) if costs is None else float(costs[place]))

        places = random.Random(seed).sample(range(count), min(count, LOOK_LIMIT))
        largest: list[int] = [] if costs is None else costs.topk(min(batch_size, LOOK_LIMIT, count)).indices.tolist()
        drawn, top = (list(_within(map(looked_at, some), limit_s)) for some in (places, largest))
        return cls(_rising(drawn), _rising({*top, *drawn})[::-1], count, lambda place: data[place], collate)

    def shares(self, distribution: Mapping[str, float] | None) -> dict[str, float]:
        """Return the shares of the requested task types by name. They sum to 1.

        Raises:
            UsageError: a type without a loaded sample, an invalid share, or no share above 0.
        """
        seen = Counter(one.group for one in self.drawn)
        wished: Mapping[str, float] = seen if distribution is None else distribution
        strange = [name for name in wished if name not in {one.group for one in self.top}]
        if strange:
            raise UsageError(
                f"no sample of task type {strange[0]!r} was seen",
                known=f"there are {', '.join(sorted(seen))}" + ("" if self._complete else f", among {len(self.drawn)} samples"),
            )
        total = sum(wished.values())
        if not 0 < total < math.inf or any(not 0 <= share < math.inf for share in wished.values()):
            raise UsageError("shares of task types are numbers of 0 or more, and not all 0", try_="{'T1': 0.5, 'T2': 0.5}")
        return {name: wished[name] / total for name in sorted(wished) if wished[name] > 0}

    def typical(self, size: int, shares: Mapping[str, float]) -> object:
        """Return a batch of `size` samples: each type by its share, evenly spread over the costs of the type."""
        places: list[int] = []
        for name, count in _apportioned(size, shares).items():
            of_type = [one.place for one in self.drawn if one.group == name] or [
                one.place for one in self.top if one.group == name
            ]
            places += [of_type[int((part + 0.5) * len(of_type) / count)] for part in range(count)]
        return self.collate([self.sample(place) for place in places])

    def largest(self, size: int, shares: Mapping[str, float]) -> object:
        """Return a batch of the `size` costliest known samples of these types. The costliest of each type come first, so that the
        batch uses every part of the model. If fewer samples are known, the costliest one is repeated."""
        allowed = [one for one in self.top if one.group in shares]
        first: dict[str, Known] = {}
        for one in allowed:
            first.setdefault(one.group, one)
        places = [one.place for one in dict.fromkeys([*first.values(), *allowed])][:size]
        return self.collate([self.sample(place) for place in places + places[:1] * (size - len(places))])

    def mean_cost(self, group: str) -> float:
        """Return the mean cost of the samples of one type."""
        costs = [one.cost for one in self.drawn if one.group == group] or [one.cost for one in self.top if one.group == group]
        return sum(costs) / len(costs)

    def notes(self) -> Iterator[str]:
        """Yield remarks on the selection of the samples."""
        if self.samples is None:
            yield f"a stream: its first {count_of(len(self.drawn), 'sample')} stand for all"
        elif not self._complete:
            yield f"{len(self.drawn)} of {count_of(self.samples, 'sample')} were looked at: a larger one may exist"

    @property
    def _complete(self) -> bool:
        return len(self.drawn) == self.samples


def _rising(known: Iterable[Known]) -> tuple[Known, ...]:
    return tuple(sorted(known))


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
    held = 0
    for sample in islice(stream, LOOK_LIMIT):
        yield sample
        held += nest_bytes(sample)
        if held >= STREAM_LIMIT_BYTES:
            return


def _within(items: Iterator[T], limit_s: float) -> Iterator[T]:
    """Yield items until the time limit; the first one in any case."""
    ends = time.monotonic() + limit_s
    for item in items:
        yield item
        if time.monotonic() > ends:
            return
