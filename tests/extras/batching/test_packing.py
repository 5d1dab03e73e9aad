"""Micro-batches keep within their budget, and no better ones could have been cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcal.core.errors import UsageError
from batchcal.extras.batching.packing import MANY, CostBudget, bucketed, greedy

COSTS = st.lists(st.one_of(st.integers(0, 30).map(float), st.floats(0, 30)), min_size=1, max_size=40)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], CostBudget]:
    """Costs of which each fits alone."""
    costs = draw(COSTS)
    per_sample = draw(st.sampled_from([0.0, 0.0, 1.0, 7.5]))
    least = max(max(costs) + per_sample, 0.1)
    budget = CostBudget(
        draw(st.floats(least, 8 * least)),
        per_sample=per_sample,
        max_samples=draw(st.sampled_from([None, 1, 2, 7])),
        collation=draw(st.sampled_from(["padded", "packed"])),
    )
    return costs, budget


def cut(costs: list[float], sizes: list[int]) -> list[list[float]]:
    assert sum(sizes) == len(costs)
    assert min(sizes) > 0
    ends = [0, *accumulate(sizes)]
    return [costs[start:end] for start, end in pairwise(ends)]


def cheapest(costs: list[float], budget: CostBudget, fixed: float) -> float:
    """Least padded cost + `fixed` per micro-batch, by trying all ways to cut."""

    @cache
    def rest(start: int) -> float:
        if start == len(costs):
            return 0.0
        ends = range(start + 1, len(costs) + 1)
        held = [costs[start:end] for end in ends if budget.holds(costs[start:end])]
        return min(len(piece) * piece[-1] + fixed + rest(start + len(piece)) for piece in held)

    return rest(0)


@given(problem=problems())
@settings(deadline=None)
def test_greedy_fills_each_micro_batch_until_the_next_sample_does_not_fit(problem: tuple[list[float], CostBudget]) -> None:
    costs, budget = problem
    pieces = cut(costs, greedy(costs, budget))
    assert all(budget.holds(piece) for piece in pieces)
    for piece, following in pairwise(pieces):
        assert not budget.holds([*piece, following[0]])


@given(problem=problems())
@settings(deadline=None)
def test_greedy_makes_the_fewest_micro_batches_for_sorted_costs(problem: tuple[list[float], CostBudget]) -> None:
    costs, budget = sorted(problem[0]), problem[1]
    # What every way to cut costs, where a micro-batch is all that costs.
    fewest = [0] + [len(costs)] * len(costs)
    for end in range(1, len(costs) + 1):
        fewest[end] = 1 + min(fewest[start] for start in range(end) if budget.holds(costs[start:end]))
    assert len(greedy(costs, budget)) == fewest[-1]


@given(problem=problems(), overhead=st.sampled_from([0.0, 0.02, 0.1, 1.0]))
@settings(deadline=None)
def test_bucketed_chooses_the_cheapest_split_for_a_few_micro_batches(
    problem: tuple[list[float], CostBudget], overhead: float
) -> None:
    costs, budget = sorted(problem[0]), problem[1]
    sizes = bucketed(costs, budget, overhead=overhead)
    pieces = cut(costs, sizes)
    assert all(budget.holds(piece) for piece in pieces)
    few = greedy(costs, budget)
    if budget.collation == "packed" or len(few) >= MANY:
        assert sizes == few
        return
    found = sum(len(piece) * piece[-1] + overhead * budget.cost for piece in pieces)
    assert found == pytest.approx(cheapest(costs, budget, overhead * budget.cost), rel=1e-9, abs=1e-9)


def test_a_higher_overhead_accepts_more_padding_for_fewer_micro_batches() -> None:
    costs = [1.0] * 4 + [10.0] * 4
    assert bucketed(costs, CostBudget(80.0), overhead=0.5) == [8], "36 of padding are less than half a full one"
    assert bucketed(costs, CostBudget(80.0), overhead=0.1) == [4, 4]


def test_equal_costs_are_split_into_full_micro_batches() -> None:
    assert bucketed([5.0] * 12, CostBudget(30.0), overhead=0.0) == [6, 6]


def test_floating_point_rounding_does_not_reduce_the_number_of_samples() -> None:
    """3 x 0.1 is more than 0.3, and 0.3 / 0.1 less than 3: neither may cost a sample."""
    for capacity in range(1, 200):
        for worst in (0.1, 0.7, 1 / 3, 127.3):
            assert greedy([worst] * capacity, CostBudget(capacity * worst)) == [capacity]
            assert bucketed([worst] * capacity, CostBudget(capacity * worst)) == [capacity]


def test_the_fixed_cost_per_sample_counts_towards_the_budget() -> None:
    assert greedy([1.0] * 12, CostBudget(12.0)) == [12]
    assert greedy([1.0] * 12, CostBudget(12.0, per_sample=2.0)) == [4, 4, 4]
    assert greedy([0.0] * 12, CostBudget(12.0)) == [12], "what costs nothing has no limit"
    assert greedy([0.0] * 12, CostBudget(12.0, max_samples=5)) == [5, 5, 2]


def test_padded_samples_cost_as_much_as_the_largest_and_packed_samples_do_not() -> None:
    costs = [1.0, 1.0, 6.0, 1.0, 1.0]
    assert greedy(costs, CostBudget(12.0)) == [2, 2, 1]
    assert greedy(costs, CostBudget(12.0, collation="packed")) == [5]


def test_costs_above_the_budget_or_not_sorted_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"7\.0 is above the budget of 6\.0"):
        greedy([1.0, 7.0], CostBudget(6.0))
    with pytest.raises(ValueError, match="must rise"):
        bucketed([2.0, 1.0], CostBudget(6.0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cost": 0.0}, "a budget of 0.0 is not valid"),
        ({"cost": float("nan")}, "a budget of nan"),
        ({"cost": float("inf")}, "a budget of inf"),
        ({"cost": 1.0, "per_sample": -1.0}, "per_sample -1.0 is not valid"),
        ({"cost": 1.0, "max_samples": 0}, "max_samples 0 is below 1"),
        ({"cost": 1.0, "collation": "ragged"}, "'ragged' is neither padded nor packed"),
    ],
)
def test_invalid_cost_budgets_are_rejected(wrong: dict[str, object], said: str) -> None:
    make: Callable[..., CostBudget] = CostBudget
    with pytest.raises(UsageError, match=said):
        make(**wrong)
