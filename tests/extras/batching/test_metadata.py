"""Costs and groups come from the task, each sample is asked once, and what is no cost or no group is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.extras.batching.metadata import Metadata, costs_of
from batchcal.extras.batching.packing import CostBudget
from batchcal.extras.batching.sampler import MemoryAwareBatchSampler
from batchcal.workload.task import Task
from tests.support.plans import a_plan

LENGTHS = (3, 9, 1, 7, 9, 2, 5)


class Texts(Dataset[Tensor]):
    """Counts how often a sample was loaded."""

    def __init__(self) -> None:
        self.loaded = 0

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Tensor:
        self.loaded += 1
        return torch.zeros(LENGTHS[index])


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(3, 4))


def kind_of(sample: Tensor) -> str:
    return "long" if len(sample) > 4 else "short"


def task_of(data: Dataset[object]) -> Task:
    model = nn.Linear(2, 1)
    return Task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), train_data=data, loss=lambda m, b: b.sum())


def test_listed_costs_load_no_samples() -> None:
    data = Texts()
    costs, groups = costs_of(replace(task_of(data), size_of=LENGTHS))
    assert (costs.tolist(), groups, data.loaded) == (list(LENGTHS), None, 0)
    given = ["a", "b"] * 3 + ["a"]
    costs, groups = costs_of(replace(task_of(data), size_of=LENGTHS, group_of=kind_of), given)
    assert (groups, data.loaded) == (given, 0)


def test_size_of_and_group_of_load_each_sample_once() -> None:
    data = Texts()
    costs, groups = costs_of(replace(task_of(data), size_of=lambda sample: 2 * len(sample), group_of=kind_of))
    assert costs.tolist() == [2.0 * length for length in LENGTHS]
    assert groups == ["short", "long", "short", "long", "long", "short", "long"]
    assert data.loaded == len(LENGTHS)


def test_the_default_cost_of_a_sample_is_its_number_of_elements() -> None:
    assert costs_of(task_of(Texts()))[0].tolist() == list(LENGTHS)


def test_listed_costs_can_be_combined_with_a_group_function() -> None:
    costs, groups = costs_of(replace(task_of(Texts()), size_of=[1.0] * 7, group_of=kind_of))
    assert costs.tolist() == [1.0] * 7
    assert groups is not None
    assert groups[1] == "long"


def test_groups_are_numbered_by_first_appearance() -> None:
    found = Metadata.of([1.0, 2.0, 3.0], ["b", "a", "b"]).groups
    assert found is not None
    assert found.tolist() == [0, 1, 0]
    assert Metadata.of([1.0, 2.0], ["b", "b"]).groups is None, "one group is none"


def test_the_checksum_depends_on_costs_order_and_groups() -> None:
    same = [Metadata.of([1.0, 2.0, 3.0], groups).checksum() for groups in (None, None)]
    assert len(set(same)) == 1
    others = [([1.0, 2.0, 3.5], None), ([2.0, 1.0, 3.0], None), ([1.0, 2.0, 3.0], ["a", "b", "a"])]
    assert len({same[0], *(Metadata.of(costs, groups).checksum() for costs, groups in others)}) == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size_of": (1.0, 2.0)}, "size_of has 2 costs, but the training data has 7 samples"),
        ({"size_of": [*LENGTHS[1:], float("nan")]}, "not a single finite number"),
        ({"size_of": lambda sample: "long"}, "size_of returned 'long'"),
        ({"size_of": LENGTHS, "group_of": len}, "group_of returned 3 for sample 0"),
    ],
)
def test_invalid_costs_and_groups_are_user_code_errors(fields: dict[str, object], said: str) -> None:
    task = task_of(Texts())
    for name, value in fields.items():
        object.__setattr__(task, name, value)
    with pytest.raises(UserCodeError, match=said):
        costs_of(task)


def test_negative_and_infinite_costs_name_the_sample() -> None:
    with pytest.raises(UserCodeError, match="sample 2 costs -1"):
        Metadata.of([1.0, 2.0, -1.0], None)
    with pytest.raises(UserCodeError, match="sample 0 costs inf"):
        Metadata.of([float("inf")], None)
    with pytest.raises(UserCodeError, match="1 group for 2 samples"):
        Metadata.of([1.0, 2.0], ["a"])


def test_a_stream_is_rejected_because_it_is_not_read_by_index() -> None:
    with pytest.raises(UsageError, match="Stream is not read by index"):
        costs_of(task_of(Stream()))


def test_the_default_cost_budget_is_one_micro_batch_of_the_largest_samples() -> None:
    task = replace(task_of(Texts()), size_of=LENGTHS, group_of=kind_of)
    sampler = MemoryAwareBatchSampler.of(task, a_plan(2, 2), balance=0.0, seed=3)
    assert sampler.settings.budget == CostBudget(18.0)
    assert (sampler.effective_batch, sampler.samples, sampler.settings.balance) == (4, 7, 0.0)
    assert sorted(index for piece in sampler for index in piece) == list(range(7))
    given = MemoryAwareBatchSampler.of(task, a_plan(2, 2), budget=CostBudget(10.0, max_samples=3), groups=["a"] * 7)
    assert given.settings.budget == CostBudget(10.0, max_samples=3)


def test_groups_are_not_computed_without_balance() -> None:
    data = Texts()
    sampler = MemoryAwareBatchSampler.of(replace(task_of(data), size_of=LENGTHS, group_of=kind_of), a_plan(2, 2), balance=0.0)
    assert len(list(sampler)) >= 4
    assert data.loaded == 0


def test_zero_costs_keep_the_micro_batch_size_of_the_plan() -> None:
    sampler = MemoryAwareBatchSampler.of(replace(task_of(Texts()), size_of=[0.0] * 7), a_plan(2, 2))
    assert sampler.settings.budget.max_samples == 2
    assert sorted(len(piece) for piece in sampler) == [1, 2, 2, 2]


def test_the_ranks_of_a_plan_together_read_every_sample_once() -> None:
    task = replace(task_of(Texts()), size_of=LENGTHS)
    plan = a_plan(2, effective_batch=4, world_size=2)
    ranks = [list(MemoryAwareBatchSampler.of(task, plan, rank=rank)) for rank in range(2)]
    assert sorted(index for batches in ranks for piece in batches for index in piece) == list(range(7))
