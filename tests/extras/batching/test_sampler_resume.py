"""What stopped goes on with the next step, under the same settings or others, and nothing is trained twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from batchcal.core.errors import UsageError
from batchcal.extras.batching.packing import CostBudget
from batchcal.extras.batching.sampler import MemoryAwareBatchSampler
from tests.support.sampling import (
    Options,
    budget_of,
    cases,
    cost_of,
    kinds,
    lengths,
    one_pass,
    sampler_of,
    samples_of,
    sizes_of,
    step_of,
)

COSTS = lengths(50)
BUDGET = CostBudget(256.0)


@given(case=cases(), data=st.data())
@hypothesis_settings(deadline=None)
def test_a_resumed_sampler_continues_as_if_it_had_never_stopped(case: tuple[list[float], Options], data: st.DataObject) -> None:
    costs, options = case
    uninterrupted = sampler_of(costs, **options)
    epochs = [one_pass(uninterrupted) for _ in range(3)]
    epoch = data.draw(st.integers(0, 1))
    stop = data.draw(st.integers(0, len(epochs[epoch])))
    first = sampler_of(costs, **options)
    for _ in range(epoch):
        one_pass(first)
    one_pass(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = sampler_of(costs, **options)
    second.load_state_dict(state)
    assert second.state_dict() == state
    rest, following = epochs[epoch][stop:], epochs[epoch + 1]
    assert one_pass(second) == (rest or following)
    assert one_pass(second) == (following if rest else epochs[2] if epoch == 0 else one_pass(uninterrupted))


CHANGES: list[Options] = [
    {"effective_batch": 13},
    {"mode": "greedy"},
    {"balance": 0.9},
    {"window": 4},
    {"budget": CostBudget(1000.0)},
    {"budget": CostBudget(2000.0, per_sample=1.0, max_samples=11)},
    {"effective_batch": 40, "budget": CostBudget(300.0), "mode": "bucketed", "worst_first": False},
]


@given(case=cases(), changes=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3), data=st.data())
@hypothesis_settings(deadline=None)
def test_settings_may_change_in_the_middle_of_an_epoch(
    case: tuple[list[float], Options], changes: list[Options], data: st.DataObject
) -> None:
    """What was trained under each of them is trained once."""
    costs, options = case
    sampler, seen = sampler_of(costs, **options), list[int]()
    for change in changes:
        whole = (len(costs) - len(seen)) // sampler.effective_batch
        groups = one_pass(sampler, data.draw(st.integers(0, max(whole - 1, 0))))
        seen += samples_of(groups)
        options = {**options, **change}
        state = json.loads(json.dumps(sampler.state_dict()))
        sampler = sampler_of(costs, **options)
        sampler.load_state_dict(state)
    other = sampler_of(costs, **options)
    other.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    rest = one_pass(sampler)
    assert sorted(seen + samples_of(rest)) == list(range(len(costs)))
    budget, step = budget_of(options), step_of(options)
    whole, left = divmod(len(costs) - len(seen), step)
    assert sizes_of(rest) == [step] * whole + [left] * bool(left)
    assert all(cost_of(costs, piece, budget) <= budget.cost * (1 + 1e-12) for group in rest for piece in group)
    assert one_pass(other) == rest


def test_the_rest_of_a_changed_epoch_starts_with_its_most_expensive_micro_batch() -> None:
    costs = lengths(400)
    first = sampler_of(costs, effective_batch=16, budget=CostBudget(256.0), epoch=3)
    one_pass(first, 5)
    second = sampler_of(costs, effective_batch=16, budget=CostBudget(1024.0))
    second.load_state_dict(first.state_dict())
    groups = one_pass(second)
    assert cost_of(costs, groups[0][0], CostBudget(1024.0)) == max(
        cost_of(costs, piece, CostBudget(1024.0)) for group in groups for piece in group
    )


def test_a_partially_read_group_is_repeated_from_its_start_on_resume() -> None:
    costs = lengths(200)
    options: Options = {"effective_batch": 32, "budget": CostBudget(256.0), "window": 1}
    whole = one_pass(sampler_of(costs, **options))
    sampler = sampler_of(costs, **options)
    batches = iter(sampler)
    for _ in range(len(whole[0]) + 1):
        next(batches)
        sampler.next_record()
    resumed = sampler_of(costs, **options)
    resumed.load_state_dict(sampler.state_dict())
    assert one_pass(resumed) == whole[1:]


def test_batches_that_workers_prefetch_do_not_count_as_trained() -> None:
    sampler = sampler_of(lengths(200), effective_batch=32, budget=CostBudget(256.0))
    before = sampler.state_dict()
    list(islice(sampler, 20))
    assert sampler.state_dict() == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, "another seed"),
        ({"costs": [*COSTS, 3.0]}, "another number of samples"),
        ({"costs": COSTS[::-1]}, "other costs or groups"),
        ({"groups": kinds(50)}, "other costs or groups"),
    ],
)
def test_a_mid_epoch_state_of_another_seed_or_dataset_is_rejected(other: Options, said: str) -> None:
    first = sampler_of(COSTS, effective_batch=10, budget=BUDGET)
    one_pass(first, 2)
    options: Options = {"costs": COSTS, "effective_batch": 10, "budget": BUDGET, **other}
    make: Callable[..., MemoryAwareBatchSampler] = MemoryAwareBatchSampler
    with pytest.raises(UsageError, match=f"in the middle of epoch 0, which had {said}"):
        make(**options).load_state_dict(first.state_dict())
    one_pass(first)
    second = make(**options)
    second.load_state_dict(first.state_dict())
    assert second.epoch == 2, "between epochs nothing is left to be found"


@pytest.mark.parametrize(
    ("state", "said"),
    [({}, "seed: Field required"), ({"format": 2}, "format: Input should be 1"), ({"segments": [{"groups": 1}]}, "settings")],
)
def test_an_invalid_sampler_state_is_rejected(state: dict[str, object], said: str) -> None:
    sampler = sampler_of(COSTS, effective_batch=10, budget=BUDGET)
    whole = {} if not state else {**sampler.state_dict(), **state}
    with pytest.raises(UsageError, match="not a state of a MemoryAwareBatchSampler") as caught:
        sampler.load_state_dict(whole)
    assert said in caught.value.known


def test_an_unfinished_sampler_pass_does_not_change_the_next_pass() -> None:
    sampler = sampler_of(COSTS, effective_batch=10, budget=BUDGET)
    next(iter(sampler))
    assert sorted(samples_of(one_pass(sampler))) == list(range(50))
    other = sampler_of(COSTS, effective_batch=10, budget=replace(BUDGET), epoch=1)
    assert other.epoch == 1
    one_pass(other)
    assert one_pass(sampler) == one_pass(other)
