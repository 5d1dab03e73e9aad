"""Worst-case batches: the largest samples there are, put together by the user's own collate function."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from typing import Final, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from batchcal.core.errors import UserCodeError
from batchcal.core.units import MIB, count_of, format_bytes
from batchcal.workload.facts import TaskFacts
from batchcal.workload.pickled import pickled_bytes
from batchcal.workload.task import Task

Part = Literal["train", "eval"]
SizeOf = Callable[..., float] | Sequence[float] | None
Found = Literal["size_of", "scan", "partial-scan", "first-samples"]

ORDER_LIMIT: Final = 65_536
"""So many of the largest samples are remembered; a larger batch repeats the largest."""
GROUP_LOOK_LIMIT: Final = 1024
"""So many of the largest samples are loaded at most to learn their groups."""
LISTED_LIMIT: Final = 1 << 20
"""Up to here a random order is a shuffled list; beyond, indices are drawn one by one."""
LOOK_LIMIT: Final = 4096
"""Samples of a stream that are looked at, at most."""
LOOK_LIMIT_BYTES: Final = 64 * MIB
"""Bytes of them that are kept, at most."""
PICKLE_LIMIT_BYTES: Final = MIB
"""A dataset that pickles to more is worth a word: every worker that is not forked is sent that much."""
FACTS_BATCH: Final = 8
"""Samples of the batch whose bytes are told; fewer where they are large."""
FACTS_BATCH_BYTES: Final = 256 * MIB
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
"""Types that are no nest and hold no tensor."""


class WorstCase:
    """The largest samples of a dataset and the batches they make.

    Args:
        size_of: sample -> cost, or the costs by index; None: a sample costs its elements.
        group_of: sample -> task type. The largest of every type come first, so that a batch meets every part of the model.
        time_limit_s: how long samples may be looked at; the one being loaded is waited for.
        order: the indices found before, largest first; nothing is then looked at.

    Raises:
        UserCodeError: the dataset is empty, or `size_of` is no cost for each sample. What the dataset raises is let pass.
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
        self.collate: Callable[..., object] = default_collate if collate is None else collate
        self.indexable = not isinstance(task_data, IterableDataset) and hasattr(task_data, "__getitem__")
        self.samples = _length(task_data)
        self.looked_at = 0
        """Samples that were loaded to learn their size."""
        self.worst_size: float | None = None
        self.found: Found = "scan"
        self._kept: list[object] = []
        if self.samples == 0:
            raise _empty(task_data)
        if not self.indexable:
            self.found = "first-samples"
            self.order = self._look(size_of, time_limit_s)
        elif order is not None:
            self.order = tuple(order)
        elif size_of is not None and not callable(size_of):
            self.found = "size_of"
            self.order = self._listed(size_of, group_of, time_limit_s)
        else:
            self.order = self._scan(size_of, group_of, time_limit_s, seed)
        """Indices, largest first, at most ORDER_LIMIT. For a stream: places among the samples that were looked at."""

    @classmethod
    def of(cls, task: Task, part: Part, *, limit_s: float, seed: int, order: Sequence[int] | None = None) -> WorstCase:
        """For one part of a task. Evaluation falls back to the training data where the task has no other."""
        data = task.train_data if part == "train" or task.eval_data is None else task.eval_data
        # A sequence of sizes is that of the training data.
        size_of = task.size_of if data is task.train_data or callable(task.size_of) else None
        return cls(data, task.collate_fn, size_of, task.group_of, time_limit_s=limit_s, seed=seed, order=order)

    def indices(self, size: int) -> list[int]:
        """The `size` largest, the very largest again and again where fewer are known."""
        chosen = list(self.order[:size])
        return chosen + [self.order[0]] * (size - len(chosen))

    def batch(self, size: int) -> object:
        """A batch of `size` samples as collated, on the CPU; loaded anew each time, as in training."""
        return self.collate([self._sample(place) for place in self.indices(size)])

    def _sample(self, place: int) -> object:
        return _item(self.dataset, place) if self.indexable else self._kept[place]

    def facts(self, task: Task) -> TaskFacts:
        """What `task`, whose training data this is about, says about itself."""
        fit = FACTS_BATCH_BYTES // max(nest_bytes(self._sample(self.order[0])), 1)
        size = max(1, min(FACTS_BATCH, self.samples or FACTS_BATCH, fit))
        parameters = list(task.model.parameters())
        pickled = pickled_bytes(task.train_data)
        notes = list(self.notes())
        if pickled.size is None:
            notes.append(
                f"the training dataset does not pickle ({pickled.why_not}): "
                "DataLoader workers can only be forked; let it carry the path and open it in the worker"
            )
        elif pickled.size > PICKLE_LIMIT_BYTES:
            least = "" if pickled.complete else "at least "
            notes.append(
                f"the training dataset pickles to {least}{format_bytes(pickled.size)}: every DataLoader worker that is not "
                f"forked is sent that much and holds it again, {least}{format_bytes(4 * pickled.size)} for 4 workers; "
                "let it carry the path and load in the worker, on the first __getitem__"
            )
        return TaskFacts(
            train_samples=self.samples,
            eval_samples=_length(task.eval_data),
            parameters=sum(one.numel() for one in parameters),
            parameter_bytes=sum(one.numel() * one.element_size() for one in parameters),
            optimizer=type(task.optimizer).__name__,
            batch_bytes_per_sample=nest_bytes(self.batch(size)) / size,
            worst_case=self.found,
            worst_size=self.worst_size,
            dataset_pickle_bytes=pickled.size,
            notes=tuple(notes),
        )

    def notes(self) -> Iterator[str]:
        """What to know about how the largest samples were found."""
        if self.found == "partial-scan":
            yield (
                f"only {count_of(self.looked_at, 'sample')} of {self.samples} could be looked at in time: a larger one may "
                "exist; give size_of as a sequence of costs by index"
            )
        elif self.found == "first-samples":
            yield f"a stream: the largest of its first {count_of(self.looked_at, 'sample')} stand for all; leave a larger margin"

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
            first.setdefault(group_of(_item(self.dataset, index)), index)
            self.looked_at += 1
            if time.monotonic() > ends:
                break
        return tuple(dict.fromkeys([*first.values(), *indices]))

    def _scan(self, size_of: SizeOf, group_of: Callable[..., str] | None, time_limit_s: float, seed: int) -> tuple[int, ...]:
        """Loads samples in a random order, as many as there is time for."""
        if self.samples is None:
            raise UserCodeError(
                f"{type(self.dataset).__name__} has no length",
                known="a dataset that is read by index says how many samples it has",
                try_="def __len__(self): ..., or derive it from torch.utils.data.IterableDataset",
            )
        ends = time.monotonic() + time_limit_s
        found: list[tuple[float, int]] = []
        largest: dict[str, tuple[float, int]] = {}
        for index in _shuffled(self.samples, seed):
            sample = _item(self.dataset, index)
            one = cost_of(size_of, sample), index
            found.append(one)
            if group_of is not None:
                group = group_of(sample)
                largest[group] = min(largest.get(group, one), one, key=_by_cost)
            if time.monotonic() > ends:
                break
        self.looked_at = len(found)
        self.found = "scan" if self.looked_at == self.samples else "partial-scan"
        found.sort(key=_by_cost)
        self.worst_size = found[0][0]
        first = [index for _, index in sorted(largest.values(), key=_by_cost)]
        return tuple(dict.fromkeys([*first, *(index for _, index in found)]))[:ORDER_LIMIT]

    def _look(self, size_of: SizeOf, time_limit_s: float) -> tuple[int, ...]:
        """Keeps the first samples of a stream, within limits."""
        if not isinstance(self.dataset, Iterable):
            raise UserCodeError(
                f"{type(self.dataset).__name__} can be read neither by index nor in order",
                known="a dataset has __getitem__ and __len__, or __iter__",
                try_="derive it from torch.utils.data.Dataset",
            )
        ends = time.monotonic() + time_limit_s
        held = 0
        sizes: list[tuple[float, int]] = []
        for sample in self.dataset:
            sizes.append((cost_of(size_of if callable(size_of) else None, sample), len(self._kept)))
            self._kept.append(sample)
            held += nest_bytes(sample)
            if len(self._kept) >= LOOK_LIMIT or held >= LOOK_LIMIT_BYTES or time.monotonic() > ends:
                break
        if not sizes:
            raise _empty(self.dataset)
        self.looked_at = len(sizes)
        sizes.sort(key=_by_cost)
        self.worst_size = sizes[0][0]
        return tuple(place for _, place in sizes)


def elements(value: object) -> int:
    """How many values a sample holds, in tensors, arrays, texts and any nest of them."""
    return sum(_leaf_elements(leaf) for leaf in _leaves(value))


def nest_bytes(value: object) -> int:
    """Bytes of the tensors and arrays in any nest. Asked of every batch of a training: names and counts by row are passed over
    at once."""
    total = 0
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, Tensor):
            total += one.nbytes
        elif (inside := _children(one)) is not None:
            rest.extend(child for child in inside if type(child) not in _PLAIN)
        elif isinstance(size := getattr(one, "nbytes", 0), int):
            total += size
    return total


def _leaf_elements(leaf: object) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel()
    if isinstance(leaf, str | bytes | bytearray):
        return len(leaf)
    size: object = getattr(leaf, "size", 1)
    if isinstance(size, tuple):  # of a PIL image: width, height
        width, height = (*size, 1, 1)[:2]
        return width * height if isinstance(width, int) and isinstance(height, int) else 1
    return size if isinstance(size, int) else 1


def _leaves(value: object) -> Iterator[object]:
    inside = _children(value)
    if inside is not None:
        for child in inside:
            yield from _leaves(child)
    elif value is not None:
        yield value


def _children(value: object) -> Iterable[object] | None:
    """What a nest holds. None: it is no nest."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return None
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return None


def listed_costs(size_of: Sequence[float], samples: int) -> Tensor:
    """The costs of all samples, (samples) float64.

    Raises:
        UserCodeError: not one finite number for each sample.
    """
    count = len(size_of)
    if count != samples:
        raise UserCodeError(
            f"size_of has {count_of(count, 'cost')}, the training data {count_of(samples, 'sample')}",
            known="a sequence gives the cost of each sample, by index",
            try_="size_of=[len(text) for text in texts], or a function: size_of=lambda sample: len(sample['text'])",
        )
    try:
        sizes = torch.as_tensor(size_of, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_cost(f"a sequence with something else: {error}") from None
    if len(sizes) != count or not bool(sizes.isfinite().all()):
        raise _no_cost("a sequence with what is not one finite number for each sample")
    return sizes


def cost_of(size_of: SizeOf, sample: object) -> float:
    """What `sample` costs by a function `size_of`; its elements where there is none.

    Raises:
        UserCodeError: `size_of` gave something other than a finite number.
    """
    if not callable(size_of):
        return float(elements(sample))
    given: object = size_of(sample)
    cost = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    try:
        number = float(cost) if isinstance(cost, int | float) or hasattr(cost, "__float__") else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise _no_cost(repr(given)[:80])
    return number


def _by_cost(found: tuple[float, int]) -> tuple[float, int]:
    """Largest first; of equals, the first."""
    return -found[0], found[1]


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Every index once, in an order told by `seed`."""
    generator = random.Random(seed)
    if count <= LISTED_LIMIT:
        listed = list(range(count))
        generator.shuffle(listed)
        yield from listed
        return
    seen: set[int] = set()
    while len(seen) < LISTED_LIMIT:
        index = generator.randrange(count)
        if index not in seen:
            seen.add(index)
            yield index


def _length(dataset: object) -> int | None:
    return len(dataset) if isinstance(dataset, Sized) else None


def _item(dataset: Dataset[object], index: int) -> object:
    return dataset[index]


def _empty(dataset: object) -> UserCodeError:
    return UserCodeError(
        f"{type(dataset).__name__} is empty", known="there is no sample to measure with", try_="look at the path of the data"
    )


def _no_cost(given: str) -> UserCodeError:
    return UserCodeError(
        f"size_of gave {given}",
        known="the cost of a sample is one finite number, larger for samples that need more memory",
        try_="size_of=lambda sample: len(sample['text'])",
    )
