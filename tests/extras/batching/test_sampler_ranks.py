"""Ranks share every sample and take the same steps in as many micro-batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from batchcal.extras.batching.packing import CostBudget
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


@given(case=cases(), ranks=st.integers(2, 5))
@hypothesis_settings(deadline=None)
def test_ranks_run_the_same_number_of_micro_batches_and_share_the_samples(case: tuple[list[float], Options], ranks: int) -> None:
    costs, options = case
    step = step_of(options) * ranks
    budget = budget_of(options)
    costs = (costs * ranks)[: max(len(costs), ranks)]
    options = {**options, "effective_batch": step, "world_size": ranks}
    if "groups" in options:
        options["groups"] = kinds(len(costs))
    samplers = [sampler_of(costs, rank=rank, **options) for rank in range(ranks)]
    passes = [one_pass(sampler) for sampler in samplers]
    shape = [len(group) for group in passes[0]]
    assert all([len(group) for group in groups] == shape for groups in passes), "as many micro-batches in every step"
    for groups in passes:
        assert all(piece for group in groups for piece in group)
        assert all(cost_of(costs, piece, budget) <= budget.cost * (1 + 1e-12) for group in groups for piece in group)
        assert all(len(piece) <= budget.most for group in groups for piece in group)
        assert sizes_of(groups)[:-1] == [step // ranks] * (len(groups) - 1)
    for position in zip(*passes, strict=True):
        counts = [list(map(len, group)) for group in position]
        assert all(abs(one - two) <= 1 for one, two in zip(counts[0], counts[-1], strict=True))
        assert counts == [counts[0]] * ranks or position[0] is passes[0][-1], "only the last step may be uneven"
    last = sum(sizes_of(groups)[-1] for groups in passes)
    assert last <= step + ranks
    seen = sorted(index for groups in passes for index in samples_of(groups))
    assert len(set(seen)) == len(seen)
    left_out = len(costs) - len(seen)
    assert left_out < ranks
    if left_out:
        assert not budget.holds([max(costs)] * 2), "only where two samples may not go together"
    assert all(sampler.state_dict() == samplers[0].state_dict() for sampler in samplers)


def test_a_run_can_resume_with_another_number_of_ranks() -> None:
    costs = lengths(500)
    options: Options = {"effective_batch": 48, "budget": CostBudget(512.0)}
    two = [sampler_of(costs, rank=rank, world_size=2, **options) for rank in range(2)]
    seen = [index for sampler in two for index in samples_of(one_pass(sampler, 4))]
    assert len(seen) == 4 * 48
    three = [sampler_of(costs, rank=rank, world_size=3, **options) for rank in range(3)]
    for sampler in three:
        sampler.load_state_dict(two[0].state_dict())
    rest = [index for sampler in three for index in samples_of(one_pass(sampler))]
    assert sorted(seen + rest) == list(range(500))


def test_ranks_have_micro_batches_of_about_the_same_cost() -> None:
    costs = lengths(2000, sigma=0.9)
    budget = CostBudget(1024.0)
    passes = [
        one_pass(sampler_of(costs, rank=rank, world_size=4, effective_batch=128, budget=budget, window=1)) for rank in range(4)
    ]
    totals = [sum(cost_of(costs, piece, budget) for group in groups for piece in group) for groups in passes]
    assert max(totals) / min(totals) < 1.02


def test_fewer_remaining_samples_than_ranks_join_the_previous_step() -> None:
    costs = [5.0] * 65
    passes = [
        one_pass(sampler_of(costs, rank=rank, world_size=4, effective_batch=16, budget=CostBudget(20.0))) for rank in range(4)
    ]
    assert [sum(sizes) for sizes in zip(*map(sizes_of, passes), strict=True)] == [16, 16, 16, 17]


def test_remaining_samples_are_dropped_if_no_two_fit_in_one_micro_batch() -> None:
    costs = [5.0] * 67
    passes = [
        one_pass(sampler_of(costs, rank=rank, world_size=4, effective_batch=16, budget=CostBudget(5.0))) for rank in range(4)
    ]
    assert [sizes_of(groups) for groups in passes] == [[4, 4, 4, 4]] * 4


def test_a_resumed_run_drops_fewer_remaining_samples_than_ranks() -> None:
    first = sampler_of([5.0] * 10, effective_batch=9, budget=CostBudget(20.0))
    one_pass(first, 1)
    second = sampler_of([5.0] * 10, effective_batch=4, budget=CostBudget(20.0), world_size=2)
    second.load_state_dict(first.state_dict())
    assert one_pass(second) == []
    assert second.state_dict()["epoch"] == 1
