"""How much larger a sample may be that was not looked at."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from batchcal.workload.data.unread_samples import MOST, UNKNOWN, unseen_factor


def test_a_complete_scan_has_a_factor_of_1() -> None:
    assert unseen_factor([1.0, 500.0], 2) == 1
    assert unseen_factor([1.0], 1) == 1


@pytest.mark.parametrize("costs", [[7.0] * 50, [float(min(size, 512)) for size in range(300, 900)]], ids=["constant", "cut"])
def test_sizes_that_are_capped_at_a_maximum_have_a_factor_of_1(costs: list[float]) -> None:
    assert unseen_factor(costs, 1_000_000) == 1


def test_a_single_sample_has_the_factor_for_unknown() -> None:
    assert unseen_factor([3.0], 100) == UNKNOWN


def test_the_factor_is_at_most_the_maximum() -> None:
    assert unseen_factor([1e9, 1.0, 1.0, 1.0], 10**6) == MOST
    assert unseen_factor([5.0, 0.0, 0.0], 100) == MOST
    assert unseen_factor([0.0, 0.0], 100) == UNKNOWN


def drawn(kind: str, count: int, chance: random.Random) -> list[float]:
    draws: dict[str, Callable[[], float]] = {
        "uniform": lambda: chance.uniform(50, 100),
        "exponential": lambda: chance.expovariate(0.01) + 1,
        "log-normal": lambda: chance.lognormvariate(5, 0.5),
        "pareto": lambda: chance.paretovariate(3),
    }
    return [draws[kind]() for _ in range(count)]


@pytest.mark.parametrize(("kind", "least"), [("uniform", 0.95), ("exponential", 0.75), ("log-normal", 0.65), ("pareto", 0.35)])
def test_the_factor_covers_the_largest_of_ten_times_as_many_samples(kind: str, least: float) -> None:
    chance = random.Random(0)
    covered = 0
    for _ in range(100):
        costs = drawn(kind, 3000, chance)
        covered += max(costs) <= max(costs[:300]) * unseen_factor(costs[:300], 3000)
    assert covered / 100 >= least


def test_heavier_tails_have_a_larger_factor() -> None:
    chance = random.Random(1)
    factors = [unseen_factor(drawn(kind, 1000, chance), 100_000) for kind in ("uniform", "log-normal", "pareto")]
    assert factors == sorted(factors)
    assert factors[0] < 1.2
    assert factors[2] > 2
