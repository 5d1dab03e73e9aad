"""Samplers over texts of long-tailed lengths, and what they deliver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from batchcal.extras.batching.packing import CostBudget
from batchcal.extras.batching.sampler import MemoryAwareBatchSampler

Groups = list[list[list[int]]]
"""Of optimizer steps: their micro-batches' samples."""
Options = dict[str, object]


def sampler_of(costs: Sequence[float] | Tensor, **options: object) -> MemoryAwareBatchSampler:
    make: Callable[..., MemoryAwareBatchSampler] = MemoryAwareBatchSampler
    return make(costs, **options)


def lengths(samples: int, seed: int = 0, sigma: float = 0.6) -> list[float]:
    """As of texts: half of them below 24, few at 128."""
    generator = torch.Generator().manual_seed(seed)
    drawn = 24 * torch.exp(sigma * torch.randn(samples, generator=generator))
    found: list[float] = drawn.round().clamp(1, 128).double().tolist()
    return found


def kinds(samples: int, seed: int = 0) -> list[str]:
    drawn = torch.randint(0, 3, (samples,), generator=torch.Generator().manual_seed(seed + 1))
    return [f"T{int(kind)}" for kind in drawn]


def one_pass(sampler: MemoryAwareBatchSampler, most: int | None = None) -> Groups:
    """The next pass, or the first `most` groups of it, delivered as a loader would."""
    groups: Groups = []
    group: list[list[int]] = []
    batches = iter(sampler)
    while most is None or len(groups) < most:
        indices = next(batches, None)
        if indices is None:
            break
        drawn = sampler.next_record()
        assert list(drawn.indices) == indices
        group.append(indices)
        if drawn.ends_group:
            assert drawn.group_samples == sum(map(len, group))
            groups.append(group)
            group = []
    assert not group
    return groups


def samples_of(groups: Groups) -> list[int]:
    return [index for group in groups for piece in group for index in piece]


def sizes_of(groups: Groups) -> list[int]:
    return [sum(map(len, group)) for group in groups]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], Options]:
    """Costs and options of a sampler for one rank."""
    samples = draw(st.integers(1, 300))
    kind = draw(st.sampled_from(["long-tailed", "equal", "whole", "with zeros"]))
    seed = draw(st.integers(0, 1000))
    costs = lengths(samples, seed, draw(st.sampled_from([0.35, 0.9])))
    if kind == "equal":
        costs = [7.0] * samples
    elif kind == "whole":
        costs = [float(round(cost / 20)) for cost in costs]
    elif kind == "with zeros":
        costs = [0.0 if cost < 30 else cost / 3 for cost in costs]
    per_sample = draw(st.sampled_from([0.0, 0.0, 5.0]))
    least = max(max(costs) + per_sample, 1.0)
    budget = CostBudget(
        least * draw(st.sampled_from([1.0, 1.5, 4.0, 20.0])),
        per_sample=per_sample,
        max_samples=draw(st.sampled_from([None, None, 1, 9])),
        collation=draw(st.sampled_from(["padded", "padded", "packed"])),
    )
    options: Options = {
        "effective_batch": draw(st.integers(1, 80)),
        "budget": budget,
        "mode": draw(st.sampled_from(["bucketed", "bucketed", "greedy"])),
        "balance": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "window": draw(st.sampled_from([None, 1, 2, 3, 8])),
        "seed": seed,
        "worst_first": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options["groups"] = kinds(samples, seed)
    return costs, options


def budget_of(options: Options) -> CostBudget:
    budget = options["budget"]
    assert isinstance(budget, CostBudget)
    return budget


def step_of(options: Options) -> int:
    step = options["effective_batch"]
    assert isinstance(step, int)
    return step


def cost_of(costs: list[float], piece: list[int], budget: CostBudget) -> float:
    return budget.cost_of([costs[index] for index in piece])
