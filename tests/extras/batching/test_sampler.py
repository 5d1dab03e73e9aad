"""Every sample once, every step of the effective batch, every micro-batch within the budget: whatever was asked for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from torch import Tensor
from torch.utils.data import Dataset

from batchcal.core.errors import UsageError
from batchcal.extras.batching.packing import CostBudget
from batchcal.extras.batching.sampler import MemoryAwareBatchSampler
from batchcal.runtime.accumulate import accumulate
from batchcal.runtime.batches import MicroBatchSampler
from batchcal.runtime.loader import make_loader
from tests.support.plans import a_plan
from tests.support.sampling import (
    Groups,
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


@given(case=cases())
@hypothesis_settings(deadline=None)
def test_each_epoch_reads_every_sample_once_in_full_steps_within_the_budget(case: tuple[list[float], Options]) -> None:
    costs, options = case
    budget, step = budget_of(options), step_of(options)
    sampler, again = sampler_of(costs, **options), sampler_of(costs, **options)
    epochs: list[Groups] = []
    for _ in range(2):
        announced = len(sampler)
        groups = one_pass(sampler)
        assert announced == sum(map(len, groups))
        assert sorted(samples_of(groups)) == list(range(len(costs)))
        whole, rest = divmod(len(costs), step)
        assert sizes_of(groups) == [step] * whole + [rest] * bool(rest)
        for piece in (piece for group in groups for piece in group):
            assert len(piece) <= budget.most
            # What is cut from a packed one may add up to a little more, in the last bit.
            assert cost_of(costs, piece, budget) <= budget.cost * (1 + 1e-12)
        assert groups == one_pass(again), "told by its settings alone"
        epochs.append(groups)
    if len(epochs[0]) > 4:
        assert epochs[0] != epochs[1]


@given(case=cases())
@hypothesis_settings(deadline=None)
def test_the_first_epoch_starts_with_the_most_expensive_micro_batch(case: tuple[list[float], Options]) -> None:
    costs, options = case
    budget = budget_of(options)
    groups = one_pass(sampler_of(costs, **{**options, "worst_first": True}))
    worst = max(cost_of(costs, piece, budget) for group in groups for piece in group)
    assert cost_of(costs, groups[0][0], budget) == pytest.approx(worst, rel=1e-12)
    if len(groups) > 3:
        heads = [piece for group in groups[:3] for piece in group]
        whole = [piece for group in groups[:-1] for piece in group]
        assert max(max(costs[index] for index in piece) for piece in heads) == max(costs)
        assert max(map(len, heads)) == max(map(len, whole))


@pytest.mark.parametrize("groups", [None, kinds(1003)])
def test_a_window_of_one_gives_each_step_the_samples_of_plain_shuffling(groups: list[str] | None) -> None:
    costs = lengths(1003)
    sampler = sampler_of(costs, effective_batch=50, budget=CostBudget(512.0), window=1, groups=groups, seed=4)
    plain = MicroBatchSampler(1003, (25, 25), shuffle=True, seed=4, drop_last=False)
    for epoch in range(3):
        ours = [frozenset(samples_of([group])) for group in one_pass(sampler)]
        theirs = [frozenset(samples_of([[list(piece) for piece in group]])) for group in plain.planned()]
        plain.epoch += 1
        if epoch:
            assert ours == theirs
        else:
            # The worst comes first: steps change places, and one sample of the last step may with one of the first.
            assert len(set(ours) & set(theirs)) >= len(theirs) - 2


def test_the_first_epoch_is_plainly_shuffled_without_worst_first() -> None:
    sampler = sampler_of(lengths(300), effective_batch=50, budget=CostBudget(512.0), window=1, worst_first=False)
    plain = MicroBatchSampler(300, (50,), shuffle=True, seed=0, drop_last=False)
    assert [set(samples_of([group])) for group in one_pass(sampler)] == [set(batch) for batch in plain]


def diversity(sampler: MemoryAwareBatchSampler, groups: list[str]) -> float:
    """Groups in a micro-batch over those that could be, on average."""
    pieces = [piece for group in one_pass(sampler) for piece in group]
    return sum(len({groups[index] for index in piece}) / min(len(piece), len(set(groups))) for piece in pieces) / len(pieces)


@pytest.mark.parametrize("window", [1, 4])
def test_a_higher_balance_increases_diversity_and_padding(window: int) -> None:
    groups = kinds(3000)
    # Of each type other lengths: what is alike in cost is alike in type.
    costs = [10 + 40 * int(kind[1]) + cost / 8 for kind, cost in zip(groups, lengths(3000), strict=True)]
    made = [
        sampler_of(costs, effective_batch=240, budget=CostBudget(2000.0), groups=groups, balance=balance, window=window)
        for balance in (0.0, 0.5, 1.0)
    ]
    mixed = [diversity(sampler, groups) for sampler in made]
    padded = [sampler.padding() for sampler in made]
    assert mixed[0] < mixed[1] < mixed[2]
    assert mixed[0] < 0.6
    assert mixed[2] > 0.97
    assert padded[0] < padded[1] < padded[2]


def test_balancing_groups_of_similar_cost_adds_little_padding() -> None:
    groups, costs = kinds(6000), lengths(6000)
    diverse = sampler_of(costs, effective_batch=600, budget=CostBudget(1024.0), groups=groups, balance=1.0, window=4)
    fit = sampler_of(costs, effective_batch=600, budget=CostBudget(1024.0), groups=groups, balance=0.0, window=4)
    assert diverse.padding() < fit.padding() + 0.04
    assert diversity(diverse, groups) > 0.97


def test_the_default_window_is_the_smallest_with_little_padding() -> None:
    costs = lengths(20_000)
    make = partial(sampler_of, costs, effective_batch=64, budget=CostBudget(1024.0))
    chosen = make()
    assert 1 < chosen.settings.window < 64
    assert chosen.padding() < 0.035
    assert make(window=chosen.settings.window // 2).padding() > 0.03
    assert sampler_of(costs, effective_batch=8192, budget=CostBudget(1024.0)).settings.window == 1
    assert make(mode="greedy").settings.window == 1
    assert make(budget=CostBudget(1024.0, collation="packed")).settings.window == 1


def test_bucketed_mode_pads_far_less_than_greedy_mode() -> None:
    costs = lengths(4000, sigma=0.9)
    make = partial(sampler_of, costs, effective_batch=256, budget=CostBudget(1024.0))
    assert make(mode="greedy").padding() > 0.4
    assert make().padding() < 0.035
    assert make(budget=CostBudget(1024.0, collation="packed")).padding() == 0.0


def test_the_last_group_can_be_left_out() -> None:
    sampler = sampler_of(lengths(100), effective_batch=30, budget=CostBudget(256.0), drop_last=True)
    assert sizes_of(one_pass(sampler)) == [30, 30, 30]
    assert sampler.state_dict()["epoch"] == 1


def test_a_limit_splits_micro_batches_and_keeps_the_samples_of_each_step() -> None:
    costs = lengths(300)
    free, limited = (sampler_of(costs, effective_batch=40, budget=CostBudget(1024.0)) for _ in range(2))
    limited.limit = lambda indices: max(1, int(300 // max(costs[index] for index in indices)))
    before, after = one_pass(free), one_pass(limited)
    assert [samples_of([group]) for group in after] == [samples_of([group]) for group in before]
    assert sum(map(len, after)) > sum(map(len, before))
    assert all(cost_of(costs, piece, CostBudget(300.0)) <= 300 for group in after for piece in group)
    one_pass(limited, 2)
    free.load_state_dict(limited.state_dict())
    assert limited.state_dict()["epoch"] == 1


class Texts(Dataset[Tensor]):
    """Sample i is i, as often as it costs."""

    def __init__(self, costs: list[float]) -> None:
        self.costs = costs

    def __len__(self) -> int:
        return len(self.costs)

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((int(self.costs[index]),), index)


def pad(samples: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=-1)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.child)])
def test_a_loader_with_a_cost_sampler_weights_micro_batches_and_resumes(workers: int) -> None:
    costs, budget = lengths(150), CostBudget(256.0)
    plan = a_plan(20, 20, num_workers=workers, prefetch_factor=3 if workers else None)
    make = partial(sampler_of, costs, effective_batch=40, budget=budget, window=2)
    sampler, reference = make(), one_pass(make())
    loader = make_loader(plan, Texts(costs), collate_fn=pad, sampler=sampler)
    trained: Groups = []
    for group in accumulate(plan, loader):
        batches, weights = [], 0.0
        for batch, weight in group:
            assert isinstance(batch, Tensor)
            assert batch.numel() <= budget.cost
            batches.append(batch[:, 0].tolist())
            weights += weight
        assert weights == pytest.approx(1.0)
        trained.append(batches)
        if len(trained) == 2:
            break
    resumed = make()
    resumed.load_state_dict(sampler.state_dict())
    rest = make_loader(plan, Texts(costs), collate_fn=pad, sampler=resumed)
    for group in accumulate(plan, rest):
        trained.append([batch[:, 0].tolist() for batch, _ in group if isinstance(batch, Tensor)])
    assert trained == reference


REFUSED: list[tuple[Options, str]] = [
    ({"budget": CostBudget(40.0)}, r"sample \d+ costs \d+, and the budget of a micro-batch is 40"),
    ({"budget": CostBudget(130.0, per_sample=100.0)}, r"sample \d+ costs \d+, and the budget of a micro-batch is 130"),
    ({"effective_batch": 0}, "effective batch 0"),
    ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
    ({"effective_batch": 9, "world_size": 2}, "cannot be shared evenly by 2 ranks"),
    ({"effective_batch": 64, "world_size": 64}, "50 samples cannot form a batch"),
    ({"effective_batch": 64, "drop_last": True}, "50 samples cannot form a batch"),
    ({"mode": "sorted"}, "mode 'sorted' is neither greedy nor bucketed"),
    ({"balance": 1.5}, "balance 1.5"),
    ({"window": 0}, "a window of 0 groups"),
    ({"overhead": -1.0}, "overhead -1.0"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED)
def test_invalid_sampler_options_are_rejected(wrong: Options, said: str) -> None:
    options: Options = {"effective_batch": 10, "budget": BUDGET}
    with pytest.raises(UsageError, match=said):
        sampler_of(COSTS, **{**options, **wrong})


def test_a_sample_above_the_budget_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        sampler_of([3.0, 12.0, 5.0, 11.0], effective_batch=2, budget=CostBudget(10.0))
    assert caught.value.what == "sample 1 costs 12, and the budget of a micro-batch is 10"
    assert caught.value.known == "2 of 4 samples are above the budget"
    assert "a budget of 12 or more" in caught.value.try_


def test_a_sampler_rejects_an_empty_dataset() -> None:
    with pytest.raises(UsageError, match="0 samples cannot form a batch"):
        sampler_of([], effective_batch=2, budget=BUDGET)


def test_shuffling_by_cost_does_not_change_the_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one_pass(sampler_of(COSTS, effective_batch=10, budget=BUDGET))
    assert torch.equal(before, torch.get_rng_state())
