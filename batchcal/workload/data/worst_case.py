"""Worst-case batches: the largest samples there are, put together by the user's own collate function."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal

import torch
from torch.utils.data import Dataset, IterableDataset, default_collate

from batchcal.core.errors import UserCodeError
from batchcal.core.units import MIB, count_of, format_bytes
from batchcal.workload.data.fetch import collated, fetch, reads_together, sample_at, tolerant
from batchcal.workload.data.pickled import pickled_bytes
from batchcal.workload.data.sample_size import SizeOf, Weigher, cost_of, listed_costs, nest_bytes, tensors_in
from batchcal.workload.data.streams import length_of
from batchcal.workload.data.unread_samples import UNKNOWN, unseen_factor
from batchcal.workload.facts import TaskFacts
from batchcal.workload.task import Task

Part = Literal["train", "eval"]
SizeSource = Literal["size_of", "scan", "partial-scan", "first-samples", "unknown"]
"""`unknown`: samples show no size."""

ORDER_LIMIT: Final = 65_536
"""Number of largest samples that are kept; a larger batch repeats the largest."""
GROUP_LOOK_LIMIT: Final = 1024
"""Largest number of samples that are loaded to read their groups."""
LISTED_LIMIT: Final = 1 << 20
"""Up to here a random order is a shuffled list; beyond, indices are drawn one by one."""
LOOK_LIMIT: Final = 4096
"""Samples of a stream that are looked at, at most."""
LOOK_LIMIT_BYTES: Final = 64 * MIB
"""Bytes of them that are kept, at most."""
PICKLE_LIMIT_BYTES: Final = MIB
"""A dataset that pickles to more is worth a word: every worker that is not forked is sent that much."""
DRAWS: Final = 4
DRAWS_S: Final = 0.25
"""Random batches that are compared with the largest, at most, and for how long."""
SLOW_SAMPLE_S: Final = 0.02
SPARED_S: Final = 1.0
"""With 20 ms a sample an examination spends 3 s on fetching; slower ones share this much for all of its batches."""
FACTS_BATCH: Final = 8
"""Samples of the batch whose bytes are reported; fewer if they are large."""
FACTS_BATCH_BYTES: Final = 256 * MIB


class WorstCase:
    """The largest samples of a dataset and the batches they make.

    Args:
        size_of: sample -> cost, or the costs by index; None: what the sample, or its batch of one, holds.
        group_of: sample -> task type. The largest of each type come first, so that a batch reaches each part of the model.
        time_limit_s: seconds for reading samples; a sample that is being loaded is finished.
        order: indices that are known already, largest first; then no sample is read.

    Raises:
        UserCodeError: the dataset is empty, or `size_of` does not give a cost for each sample. Its own errors pass through.
    """

    def __init__(
        self,
        task_data: Dataset[object],
        collate: Callable[..., object] | None = None,
        size_of: SizeOf = None,
        group_of: Callable[..., str] | None = None,
        *,
        time_limit_s: float = 2.0,
        seed: int = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        self.dataset = task_data
        self.collate: Callable[..., object] = tolerant(collate) or default_collate
        self.indexable = not isinstance(task_data, IterableDataset) and (
            hasattr(task_data, "__getitem__") or hasattr(task_data, "__getitems__")
        )
        self.samples = length_of(task_data)
        self.looked_at = 0
        """Samples that were loaded to learn their size."""
        self.sample_s = 0.0
        """Seconds that a sample took, where samples were looked at."""
        self.worst_size: float | None = None
        self.factor = 1.0
        """Largest expected sample of an epoch, as a multiple of the largest known sample."""
        self._weigher = Weigher(None if collate is default_collate else collate)
        self._distinct: int | None = None
        self._loaded: dict[int, object] = {}
        self.source: SizeSource = "scan"
        self._buffer: list[object] = []
        self._ended = False
        """True if the stream ended within the samples that were read."""
        if self.samples == 0:
            raise _empty(task_data)
        if not self.indexable:
            self.source = "first-samples"
            self.order = self._look(size_of, time_limit_s)
        elif order is not None:
            self.order = tuple(order)
        elif size_of is not None and not callable(size_of):
            self.source = "size_of"
            self.order = self._listed(size_of, group_of, time_limit_s)
        else:
            self.order = self._scan(size_of, group_of, time_limit_s, seed)
        """Indices, largest first, at most ORDER_LIMIT. For a stream: places among the samples that were looked at."""

    @classmethod
    def of(cls, task: Task, part: Part, *, limit_s: float, seed: int, order: Sequence[int] | None = None) -> WorstCase:
        """The worst case of one part of a task. Evaluation uses the training data if the task has no evaluation data."""
        data = task.train_data if part == "train" or task.eval_data is None else task.eval_data
        # A sequence of sizes is that of the training data.
        size_of = task.size_of if data is task.train_data or callable(task.size_of) else None
        return cls(data, task.collate_fn, size_of, task.group_of, time_limit_s=limit_s, seed=seed, order=order)

    def indices(self, size: int) -> list[int]:
        """The `size` largest, the very largest again and again where fewer are known."""
        chosen = list(self.order[: size if self._distinct is None else min(size, self._distinct)])
        return chosen + [self.order[0]] * (size - len(chosen))

    def batch(self, size: int) -> object:
        """A collated batch of `size` samples, on the CPU; loaded again each time, as in training."""
        return self.batch_at(self.indices(size))

    def random_batch(self, size: int, generator: random.Random) -> object:
        """A batch of `size` samples as a shuffling loader makes it. Of a stream: of those that were looked at."""
        count = len(self._buffer) if not self.indexable else self.samples or len(self.order)
        few = size > count
        return self.batch_at([generator.randrange(count) for _ in range(size)] if few else generator.sample(range(count), size))

    def shapes_change(self, size: int, generator: random.Random) -> bool | None:
        """True if the smallest samples, or random ones, give tensors of other shapes than the largest. None: unknown, because
        samples are slow or cannot form a batch."""
        if self.sample_s * size > DRAWS_S:
            return None
        ends = time.monotonic() + DRAWS_S
        smallest = list(self.order[-size:])
        smallest += [smallest[-1]] * (size - len(smallest))
        try:
            shapes = _shapes(self.batch(size))
            other_shapes = _shapes(self.batch_at(smallest))
            for _ in range(DRAWS):
                if other_shapes and other_shapes != shapes:
                    return True
                if time.monotonic() > ends:
                    break
                other_shapes = _shapes(self.random_batch(size, generator))
        except Exception:  # noqa: BLE001 - the data may raise anything; a training that meets it reports it
            return None
        return bool(other_shapes) and other_shapes != shapes

    def batch_at(self, places: Sequence[int]) -> object:
        """The batch of some of `order`, as collated."""
        if self.indexable and self._distinct is None:
            return fetch(self.dataset, places, self.collate)
        return collated([self._sample(place) for place in places], self.collate, self.dataset, places)

    def _refuse_none(self, sample: object, index: int) -> None:
        if sample is None and self.collate is default_collate:
            raise UserCodeError(
                f"sample {index} of {type(self.dataset).__name__} is None, and there is no collate_fn that drops it",
                known="torch's default collate function fails on each batch with such a sample",
                try_="Task(collate_fn=...): a function that makes a batch of the samples that are not None: "
                "default_collate([sample for sample in samples if sample is not None])",
            )

    def spare(self) -> None:
        """Load few samples, each once, where one takes long: batches repeat them. Not for measurements of a batch's own time."""
        one_by_one = self.indexable and not reads_together(self.dataset)
        if one_by_one and self.sample_s > SLOW_SAMPLE_S:
            self._distinct = max(2, int(SPARED_S / self.sample_s))

    def _sample(self, place: int) -> object:
        if not self.indexable:
            return self._buffer[place]
        if self._distinct is None:
            return sample_at(self.dataset, place)
        if place not in self._loaded:
            self._loaded[place] = sample_at(self.dataset, place)
        return self._loaded[place]

    def facts(self, task: Task) -> TaskFacts:
        """Facts about `task`, whose training data this is."""
        fit = FACTS_BATCH_BYTES // max(nest_bytes(self._sample(self.order[0])), 1)
        size = max(1, min(FACTS_BATCH, self.samples or FACTS_BATCH, fit))
        parameters = list(task.model.parameters())
        pickled = pickled_bytes(task.train_data)
        notes = list(self.notes())
        if pickled.size is None:
            notes.append(
                f"the training dataset cannot be pickled ({pickled.why_not}), so DataLoader workers can only be forked; "
                "let the dataset keep the path of its file, and open the file in the worker"
            )
        elif pickled.size > PICKLE_LIMIT_BYTES:
            least = "" if pickled.complete else "at least "
            notes.append(
                f"the pickled training dataset has {least}{format_bytes(pickled.size)}: every DataLoader worker that is not "
                f"forked gets a copy of it, {least}{format_bytes(4 * pickled.size)} for 4 workers; "
                "let the dataset keep the path of its file, and load it in the worker, in the first __getitem__"
            )
        return TaskFacts(
            train_samples=self.samples,
            eval_samples=length_of(task.eval_data),
            parameters=sum(parameter.numel() for parameter in parameters),
            parameter_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            optimizer=type(task.optimizer).__name__,
            batch_bytes_per_sample=nest_bytes(self.batch(size)) / size,
            worst_case=self.source,
            worst_size=self.worst_size,
            unseen_factor=self.factor,
            effective_batch=task.effective_batch,
            dataset_pickle_bytes=pickled.size,
            notes=tuple(notes),
        )

    def notes(self) -> Iterator[str]:
        """Notes on the search for the largest samples."""
        if self.source == "partial-scan":
            yield (
                f"only {count_of(self.looked_at, 'sample')} of {self.samples} could be read in time, so a larger sample may "
                "exist; set size_of to a sequence of costs by index"
            )
        elif self.source == "first-samples":
            yield (
                f"the data is a stream: the largest of its first {count_of(self.looked_at, 'sample')} represent all samples; "
                "use a larger margin"
            )
        elif self.source == "unknown":
            yield (
                f"the size of a sample ({type(self._sample(self.order[0])).__name__}) is unknown, also as a batch of one: "
                "any sample may be the largest; set size_of"
            )

    def _listed(self, size_of: Sequence[float], group_of: Callable[..., str] | None, time_limit_s: float) -> tuple[int, ...]:
        """By the costs alone; samples are loaded only for their groups, the largest first."""
        sizes = listed_costs(size_of, self.samples or 0)
        costs, order = torch.sort(sizes, descending=True, stable=True)
        self.worst_size = float(costs[0])
        indices: list[int] = order[:ORDER_LIMIT].tolist()
        if group_of is None:
            return tuple(indices)
        ends = time.monotonic() + time_limit_s
        first: dict[str, int] = {}
        for index in indices[:GROUP_LOOK_LIMIT]:
            sample = sample_at(self.dataset, index)
            if sample is not None:
                first.setdefault(group_of(sample), index)
            self.looked_at += 1
            if time.monotonic() > ends:
                break
        return tuple(dict.fromkeys([*first.values(), *indices]))

    def _scan(self, size_of: SizeOf, group_of: Callable[..., str] | None, time_limit_s: float, seed: int) -> tuple[int, ...]:
        """Loads samples in a random order, as many as there is time for."""
        if self.samples is None:
            raise UserCodeError(
                f"{type(self.dataset).__name__} has no length",
                known="a dataset that is read by index needs a length, the number of its samples",
                try_="def __len__(self): ..., or make it a subclass of torch.utils.data.IterableDataset",
            )
        start_s = time.monotonic()
        ends = start_s + time_limit_s
        indices: list[int] = []
        costs: list[float] = []
        groups: list[str | None] = []
        for index in _shuffled(self.samples, seed):
            sample = sample_at(self.dataset, index)
            self._refuse_none(sample, index)
            indices.append(index)
            costs.append(self._weigher.cost(sample) if size_of is None else cost_of(size_of, sample))
            if group_of is not None:
                groups.append(None if sample is None else group_of(sample))
            if time.monotonic() > ends:
                break
        self.looked_at = len(indices)
        self.sample_s = (time.monotonic() - start_s) / self.looked_at
        costs = self._weigher.costs(costs)
        self._estimate_factor("scan" if self.looked_at == self.samples else "partial-scan", costs)
        candidates = list(zip(costs, indices, strict=True))
        largest: dict[str, tuple[float, int]] = {}
        for candidate, group in zip(candidates, groups, strict=False):
            if group is not None:
                largest[group] = min(largest.get(group, candidate), candidate, key=_by_cost)
        candidates.sort(key=_by_cost)
        self.worst_size = candidates[0][0]
        first = [index for _, index in sorted(largest.values(), key=_by_cost)]
        return tuple(dict.fromkeys([*first, *(index for _, index in candidates)]))[:ORDER_LIMIT]

    def _estimate_factor(self, source: SizeSource, costs: Sequence[float]) -> None:
        """Estimate how certain the largest sample is, from the `costs` of the samples that were read."""
        self.source = "unknown" if self._weigher.unknown else source
        self.factor = UNKNOWN if self._weigher.unknown else unseen_factor(costs, len(costs) if self._ended else self.samples)

    def _look(self, size_of: SizeOf, time_limit_s: float) -> tuple[int, ...]:
        """Keeps the first samples of a stream, within limits."""
        if not isinstance(self.dataset, Iterable):
            raise UserCodeError(
                f"{type(self.dataset).__name__} can be read neither by index nor in order",
                known="a dataset has __getitem__ and __len__, or __iter__",
                try_="make it a subclass of torch.utils.data.Dataset",
            )
        start_s = time.monotonic()
        ends = start_s + time_limit_s
        buffer_bytes = 0
        costs: list[float] = []
        for sample in self.dataset:
            self._refuse_none(sample, len(costs))
            costs.append(cost_of(size_of, sample) if callable(size_of) else self._weigher.cost(sample))
            self._buffer.append(sample)
            buffer_bytes += nest_bytes(sample)
            if len(self._buffer) >= LOOK_LIMIT or buffer_bytes >= LOOK_LIMIT_BYTES or time.monotonic() > ends:
                break
        else:
            self._ended = True
        if not costs:
            raise _empty(self.dataset)
        self.looked_at = len(costs)
        self.sample_s = (time.monotonic() - start_s) / self.looked_at
        costs = self._weigher.costs(costs)
        self._estimate_factor("first-samples", costs)
        sizes = [(cost, place) for place, cost in enumerate(costs)]
        sizes.sort(key=_by_cost)
        self.worst_size = sizes[0][0]
        return tuple(place for _, place in sizes)


def _shapes(batch: object) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(batch)]


def _by_cost(candidate: tuple[float, int]) -> tuple[float, int]:
    """Largest first; of equals, the first."""
    return -candidate[0], candidate[1]


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Every index once, in an order that depends on `seed`."""
    generator = random.Random(seed)
    if count <= LISTED_LIMIT:
        listed = list(range(count))
        generator.shuffle(listed)
        yield from listed
        return
    used: set[int] = set()
    while len(used) < LISTED_LIMIT:
        index = generator.randrange(count)
        if index not in used:
            used.add(index)
            yield index


def _empty(dataset: object) -> UserCodeError:
    return UserCodeError(
        f"{type(dataset).__name__} is empty", known="there is no sample to measure", try_="check the path of the data"
    )
