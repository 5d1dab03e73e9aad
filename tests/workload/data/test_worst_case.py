"""Worst-case batches hold the largest samples, through the user's own collate, found in bounded time."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, IterableDataset

from batchcal.core.errors import UserCodeError
from batchcal.core.units import MIB
from batchcal.workload.data import worst_case
from batchcal.workload.data.sample_size import SizeOf, elements, nest_bytes
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.task import Task

LENGTHS = (3, 9, 1, 7, 9, 2, 5)


class Texts(Dataset[Tensor]):
    """One-dimensional tensors; counts how many were loaded."""

    def __init__(self, lengths: tuple[int, ...] = LENGTHS, seconds: float = 0.0) -> None:
        self.lengths, self.seconds, self.loaded = lengths, seconds, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        self.loaded += 1
        time.sleep(self.seconds)
        return torch.full((self.lengths[index],), float(index))


class Stream(IterableDataset[Tensor]):
    def __init__(self, lengths: Callable[[], Iterator[int]]) -> None:
        self.lengths = lengths

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.ones(length) for length in self.lengths())


def pad(samples: list[Tensor]) -> Tensor:
    return pad_sequence(samples, batch_first=True)


def task_of(data: Dataset[object], **fields: object) -> Task:
    model = nn.Linear(2, 1)
    task = Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), train_data=data, loss=lambda m, b: b.sum())
    for name, value in fields.items():
        object.__setattr__(task, name, value)
    return task


BY_SIZE = (1, 4, 3, 6, 0, 5, 2)
SIZES_OF: dict[str, tuple[SizeOf, str, int]] = {
    "a list": (list(LENGTHS), "size_of", 0),
    "a tensor": (torch.tensor(LENGTHS).tolist(), "size_of", 0),
    "a function": (len, "scan", len(LENGTHS)),
    "nothing": (None, "scan", len(LENGTHS)),
}


@pytest.mark.parametrize("name", SIZES_OF)
def test_samples_are_ordered_by_size_with_ties_in_dataset_order(name: str) -> None:
    size_of, found, loaded = SIZES_OF[name]
    data = Texts()
    worst = WorstCase(data, pad, size_of)
    assert worst.order == BY_SIZE
    assert (worst.source, worst.worst_size) == (found, 9.0)
    assert data.loaded == loaded


def test_size_of_accepts_arrays() -> None:
    for costs in (torch.tensor(LENGTHS), numpy.array(LENGTHS)):
        data = Texts()
        task = task_of(data, size_of=costs)
        assert WorstCase.of(task, "train", limit_s=1, seed=0).order == BY_SIZE
        assert data.loaded == 0


def test_size_of_can_return_tensors_or_numpy_scalars() -> None:
    task = task_of(Texts(), size_of=lambda sample: torch.tensor(len(sample)))
    assert WorstCase.of(task, "train", limit_s=1, seed=0).order == BY_SIZE
    task = task_of(Texts(), size_of=lambda sample: numpy.float32(len(sample)))
    assert WorstCase.of(task, "train", limit_s=1, seed=0).order == BY_SIZE


def test_a_worst_case_batch_uses_the_collate_function_of_the_task() -> None:
    batch = WorstCase(Texts(), pad).batch(3)
    assert isinstance(batch, Tensor)
    assert batch.shape == (3, 9)
    assert batch[:, 0].tolist() == [1.0, 4.0, 3.0]


def test_a_worst_case_batch_uses_the_default_collate_function_of_torch() -> None:
    batch = WorstCase(Texts((4, 4))).batch(2)
    assert isinstance(batch, Tensor)
    assert batch.shape == (2, 4)


def test_a_batch_larger_than_the_dataset_repeats_the_largest_sample() -> None:
    worst = WorstCase(Texts(), pad)
    assert worst.indices(10) == [*BY_SIZE, 1, 1, 1]
    batch = worst.batch(10)
    assert isinstance(batch, Tensor)
    assert batch.shape == (10, 9)


def test_a_scan_that_runs_out_of_time_is_partial_with_a_note() -> None:
    data = Texts(tuple(range(1, 1001)), seconds=0.001)
    worst = WorstCase(data, pad, time_limit_s=0.02)
    assert worst.source == "partial-scan"
    assert 0 < worst.looked_at < 1000
    assert worst.looked_at == data.loaded
    assert "only" in next(worst.notes())
    assert len(set(worst.order)) == worst.looked_at


def test_a_scan_always_reads_at_least_one_sample() -> None:
    assert WorstCase(Texts(), pad, time_limit_s=0).looked_at == 1


def test_a_partial_scan_is_random_and_determined_by_its_seed() -> None:
    lengths = tuple(range(1, 101))
    orders = [WorstCase(Texts(lengths), pad, time_limit_s=0, seed=seed).order for seed in (1, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len(set(orders)) > 1


def test_indices_of_a_very_large_dataset_are_sampled_without_a_full_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_case, "LISTED_LIMIT", 20)
    worst = WorstCase(Texts(tuple(range(1, 1001))), pad)
    assert len(set(worst.order)) == worst.looked_at == 20
    assert worst.source == "partial-scan"


def test_a_given_order_is_used_without_a_scan() -> None:
    data = Texts()
    worst = WorstCase(data, pad, order=[6, 0])
    assert data.loaded == 0
    assert worst.indices(3) == [6, 0, 6]


def test_the_worst_case_order_has_a_length_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_case, "ORDER_LIMIT", 2)
    for size_of in (None, list(LENGTHS)):
        assert WorstCase(Texts(), pad, size_of).order == (1, 4)


@pytest.mark.parametrize("size_of", [None, len, list(LENGTHS)])
def test_the_largest_sample_of_every_group_comes_first(size_of: SizeOf) -> None:
    worst = WorstCase(Texts(), pad, size_of, lambda sample: "odd" if int(sample[0]) % 2 else "even")
    assert worst.order == (1, 4, 3, 6, 0, 5, 2)
    worst = WorstCase(Texts(), pad, size_of, lambda sample: "small" if len(sample) < 3 else "large")
    assert worst.order == (1, 5, 4, 3, 6, 0, 2)


def test_the_search_for_groups_has_a_sample_limit_and_a_time_limit() -> None:
    data = Texts(tuple(range(1, 2001)))
    WorstCase(data, pad, list(data.lengths), lambda sample: "all")
    assert data.loaded == worst_case.GROUP_LOOK_LIMIT
    slow = Texts(LENGTHS, seconds=0.001)
    WorstCase(slow, pad, list(LENGTHS), lambda sample: "all", time_limit_s=0)
    assert slow.loaded == 1


def test_a_stream_is_scanned_from_its_start() -> None:
    worst = WorstCase(Stream(lambda: iter(LENGTHS)), pad)
    assert not worst.indexable
    assert (worst.source, worst.looked_at, worst.samples) == ("first-samples", 7, None)
    batch = worst.batch(9)
    assert isinstance(batch, Tensor)
    assert batch.sum(1).tolist() == [9, 9, 7, 5, 3, 2, 1, 9, 9]
    assert "first 7 samples" in next(worst.notes())
    assert WorstCase(Stream(lambda: iter(LENGTHS)), pad, order=[5, 6]).order == BY_SIZE  # places of another look mean nothing


def test_the_scan_of_an_endless_stream_stops_at_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorstCase(Stream(lambda: itertools.repeat(1)), pad).looked_at == worst_case.LOOK_LIMIT
    monkeypatch.setattr(worst_case, "LOOK_LIMIT_BYTES", 100)
    assert WorstCase(Stream(lambda: itertools.repeat(5)), pad).looked_at == 5
    assert WorstCase(Stream(lambda: itertools.repeat(1)), pad, time_limit_s=0).looked_at == 1


def test_evaluation_uses_its_own_data_and_ignores_training_sizes() -> None:
    train, evaluated = Texts(), Texts((2, 8))
    task = task_of(train, eval_data=evaluated, size_of=list(LENGTHS), collate_fn=pad)
    assert WorstCase.of(task, "eval", limit_s=1, seed=0).order == (1, 0)
    assert WorstCase.of(task_of(train, size_of=list(LENGTHS)), "eval", limit_s=1, seed=0).order == BY_SIZE
    by_function = task_of(train, eval_data=evaluated, size_of=lambda sample: -len(sample))
    assert WorstCase.of(by_function, "eval", limit_s=1, seed=0).order == (0, 1)


class NoLength(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class Neither:
    pass


@pytest.mark.parametrize(
    ("data", "size_of", "what"),
    [
        (Texts(()), None, "Texts is empty"),
        (Stream(lambda: iter(())), None, "Stream is empty"),
        (NoLength(), None, "NoLength has no length"),
        (Neither(), None, "can be read neither by index nor in order"),
        (Texts(), [1.0], "size_of has 1 cost, but the training data has 7 samples"),
        (Texts(), [1.0, 2.0, float("nan"), 4, 5, 6, 7], "not a single finite number"),
        (Texts(), ["a"] * 7, "a sequence with a value that is not a number"),
        (Texts(), [[1, 2]] * 7, "not a single finite number"),
        (Texts(), lambda sample: "long", "size_of returned 'long'"),
        (Texts(), lambda sample: None, "size_of returned None"),
        (Texts(), lambda sample: numpy.ones(2), r"size_of returned array"),
        (Texts(), lambda sample: float("inf"), "size_of returned inf"),
    ],
)
def test_data_that_cannot_be_measured_is_a_user_error(data: Dataset[object], size_of: SizeOf, what: str) -> None:
    with pytest.raises(UserCodeError, match=what) as caught:
        WorstCase(data, pad, size_of)
    assert caught.value.known
    assert caught.value.try_


Point = namedtuple("Point", ["x", "y"])


@dataclass
class Sample:
    image: Tensor
    text: str


class Picture:
    size = (4, 3)


class Graph:
    """Of an own class, with what refers back to it and to its dataset."""

    def __init__(self, nodes: Tensor, edges: list[Tensor]) -> None:
        self.nodes, self.edges = nodes, edges
        self.itself, self.source = self, Texts()


class Slotted:
    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values


class Holder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph


@pytest.mark.parametrize(
    ("sample", "count", "size"),
    [
        (torch.zeros(2, 3), 6, 24),
        (numpy.zeros((2, 3)), 6, 48),
        ({"a": [torch.zeros(2), (torch.zeros(3),)], "b": None}, 5, 20),
        (Sample(torch.zeros(4), "text"), 8, 16),
        (Point(torch.zeros(2), 3), 3, 8),
        ("text", 4, 0),
        (b"four", 4, 0),
        ([1, 2, 3], 3, 0),
        (Picture(), 12, 0),
        (threading.Lock(), 1, 0),
        (Graph(torch.zeros(4), [torch.zeros(2)]), 6, 24),
        (Slotted(torch.zeros(4)), 4, 16),
        (Holder(Graph(torch.zeros(4), [])), 4, 16),
        (torch.eye(3).to_sparse(), 9, 60),
        (7, 1, 0),
    ],
)
def test_elements_and_bytes_of_nested_samples_are_counted(sample: object, count: int, size: int) -> None:
    assert (elements(sample), nest_bytes(sample)) == (count, size)


def test_task_facts_describe_data_and_model() -> None:
    task = task_of(Texts(), collate_fn=pad, eval_data=Texts((1, 2)))
    facts = WorstCase.of(task, "train", limit_s=1, seed=0).facts(task)
    assert (facts.train_samples, facts.eval_samples) == (7, 2)
    assert (facts.parameters, facts.parameter_bytes, facts.optimizer) == (3, 12, "SGD")
    assert facts.batch_bytes_per_sample == 9 * 4
    assert (facts.worst_case, facts.worst_size) == ("scan", 9.0)
    assert facts.dataset_pickle_bytes is not None
    assert facts.dataset_pickle_bytes < 500
    assert facts.notes == ()


def test_facts_of_large_samples_are_measured_one_sample_at_a_time() -> None:
    """A volume of 200 MiB is not collated eight at a time to learn its size."""
    collated: list[int] = []

    def collate(samples: list[Tensor]) -> Tensor:
        collated.append(len(samples))
        return samples[0]

    class Volumes(Texts):
        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(1).expand(50 * MIB)

    task = task_of(Volumes(), collate_fn=collate)
    facts = WorstCase.of(task, "train", limit_s=1, seed=0).facts(task)
    assert facts.batch_bytes_per_sample == 200 * MIB
    assert set(collated) == {1}


def test_task_facts_describe_a_stream() -> None:
    task = task_of(Stream(lambda: iter((2, 3))), collate_fn=pad)
    facts = WorstCase.of(task, "train", limit_s=1, seed=0).facts(task)
    assert (facts.train_samples, facts.eval_samples, facts.worst_case) == (None, None, "first-samples")
    assert facts.dataset_pickle_bytes is None  # it holds a lambda
    assert len(facts.notes) == 2
    assert "cannot be pickled" in facts.notes[1]
    assert "forked" in facts.notes[1]


class Holding(Texts):
    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held


@pytest.mark.parametrize("held", [numpy.zeros(400_000), torch.zeros(800_000), b"x" * 3_200_000, list(range(900_000))])
def test_a_dataset_with_a_large_pickle_produces_a_note_about_its_cost(held: object) -> None:
    task = task_of(Holding(held), collate_fn=pad)
    facts = WorstCase.of(task, "train", limit_s=1, seed=0).facts(task)
    assert facts.dataset_pickle_bytes is not None
    assert facts.dataset_pickle_bytes > 2_000_000
    (note,) = facts.notes
    assert "4 workers" in note
    assert "keep the path" in note


def test_samples_of_a_custom_class_are_measured_by_their_attributes() -> None:
    """Before, each cost 1, whatever it held."""

    class Graphs(Dataset[Graph]):
        def __len__(self) -> int:
            return len(LENGTHS)

        def __getitem__(self, index: int) -> Graph:
            return Graph(torch.ones(LENGTHS[index]), [])

    worst = WorstCase(Graphs(), lambda graphs: torch.cat([graph.nodes for graph in graphs]))
    assert worst.order == BY_SIZE


def test_samples_that_collate_turns_into_tensors_are_measured_after_collate() -> None:
    class Places(Dataset[int]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> int:
            return index

    worst = WorstCase(Places(), lambda places: pad([torch.ones(1 + place * 7 % 40) for place in places]))
    assert (worst.source, worst.worst_size) == ("scan", 40.0)
    assert worst.order[0] == 17


def test_samples_are_measured_directly_if_collate_rejects_a_single_sample() -> None:
    def pairs(samples: list[Tensor]) -> Tensor:
        if len(samples) % 2:
            raise ValueError("pairs only")
        return pad(samples)

    assert WorstCase(Texts(), pairs).order == BY_SIZE


def test_collate_runs_on_few_single_samples_if_their_size_gives_the_order() -> None:
    alone: list[int] = []

    def counting(samples: list[Tensor]) -> Tensor:
        alone.append(len(samples))
        return pad(samples)

    WorstCase(Texts(tuple(range(1, 501))), counting)
    assert alone == [1] * 16


def test_samples_without_a_size_are_unknown_with_a_note() -> None:
    class Locks(Dataset[object]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> object:
            return threading.Lock()

    worst = WorstCase(Locks(), len)
    assert (worst.source, worst.factor) == ("unknown", 2.0)
    assert "set size_of" in next(worst.notes())


def test_a_partial_scan_of_very_different_sizes_has_a_factor_above_1() -> None:
    tailed = tuple(10_000 // (rank + 1) + 1 for rank in range(1000))
    worst = WorstCase(Texts(tailed, seconds=0.001), pad, time_limit_s=0.05)
    assert worst.source == "partial-scan"
    assert worst.factor > 1.5
    assert WorstCase(Texts((7,) * 1000, seconds=0.001), pad, time_limit_s=0.05).factor == 1
    assert WorstCase(Texts(tailed), pad).factor == 1


def test_a_stream_that_is_read_to_its_end_has_a_factor_of_1() -> None:
    assert WorstCase(Stream(lambda: iter((3, 50, 1, 2, 900))), pad).factor == 1
    endless = Stream(lambda: (10_000 // (1 + place * 7919 % 1000) + 1 for place in itertools.count()))
    assert WorstCase(endless, pad, time_limit_s=0.05).factor > 1


def test_worst_case_batches_load_few_samples_if_loading_is_slow() -> None:
    data = Texts(tuple(range(1, 101)), seconds=0.05)
    worst = WorstCase(data, pad, time_limit_s=0.2)
    worst.spare()
    before = data.loaded
    for size in (2, 8, 32, 64):
        batch = worst.batch(size)
        assert isinstance(batch, Tensor)
        assert len(batch) == size
    assert data.loaded - before <= 1.0 / 0.05


@pytest.mark.parametrize(("lengths", "change"), [((8,) * 64, False), ((8, 9) * 32, True), (tuple(range(1, 65)), True)])
def test_batch_shapes_change_if_samples_have_different_lengths(lengths: tuple[int, ...], change: bool) -> None:
    worst = WorstCase(Texts(lengths), lambda texts: pad_sequence(texts, batch_first=True))
    assert worst.shapes_change(2, random.Random(0)) is change
