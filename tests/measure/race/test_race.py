"""Who is fastest, by ratios within rounds: what a user sees is that noise does not decide, and that time is not wasted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from batchcal.measure.race.race import LEAST_AGREEING, MOST_ROUNDS, Race

SPEEDS = (1.0, 1.03, 1.08, 1.15, 1.3, 1.6, 2.2, 3.5)
"""Seconds a sample of eight candidates, relative to the best."""
Noise = Callable[[random.Random, int], float]


def quiet(dice: random.Random, turn: int) -> float:
    return dice.gauss(1.0, 0.02)


def bursts(dice: random.Random, turn: int) -> float:
    """Somebody else has one of two cores for half of the time."""
    return dice.gauss(1.0, 0.02) * (1.6 if (turn // 5) % 2 else 1.0)


def drifting(dice: random.Random, turn: int) -> float:
    return dice.gauss(1.0, 0.03) * (1 + 0.004 * turn)


def run(speeds: Sequence[float], noise: Noise, seed: int) -> tuple[Race, int]:
    """The race, and how many turns it took."""
    dice, race, turn = random.Random(seed), Race(len(speeds)), 0
    while not race.over:
        told: dict[int, float] = {}
        for place in race.order():
            told[place] = speeds[place] * noise(dice, turn)
            turn += 1
        race.record(told)
    return race, turn


def shaken(dice: random.Random, turn: int) -> float:
    """The worst that bursts can do: any turn may be hit."""
    return quiet(dice, turn) * (1.6 if dice.random() < 0.5 else 1.0)


@pytest.mark.parametrize(
    ("noise", "right"),
    [(quiet, 1.0), (drifting, 0.98), (bursts, 0.98), (shaken, 0.95)],
    ids=["quiet", "drift", "bursts", "shaken"],
)
def test_the_leader_is_close_to_the_fastest_despite_noise(noise: Noise, right: float) -> None:
    good = 0
    for seed in range(200):
        order = random.Random(seed).sample(SPEEDS, len(SPEEDS))
        race, _ = run(order, noise, seed)
        assert race.leader is not None
        good += order[race.leader] <= 1.03
    assert good >= 200 * right


def test_a_much_slower_candidate_is_timed_only_twice() -> None:
    race, turns = run(SPEEDS, quiet, 0)
    slow = [runner for runner in race.runners if SPEEDS[runner.place] >= 1.6]
    assert {len(runner.times) for runner in slow} == {2}
    assert {runner.left for runner in slow} == {"slower"}
    assert turns < 0.4 * MOST_ROUNDS * len(SPEEDS)


def test_single_slow_rounds_do_not_remove_a_candidate() -> None:
    race = Race(2)
    for first in (1.0, 1.6, 1.0, 1.6):
        race.record({0: first, 1: 1.0})
    assert race.running == (0, 1)


def test_a_candidate_that_is_slightly_slower_in_every_round_is_behind() -> None:
    race = Race(2)
    for extra in (0.0, 0.05, 0.1, 0.0, 0.05, 0.1):
        race.record({0: 1.08 + extra, 1: 1.0 + extra})
    assert (race.runners[0].left, race.runners[0].why) == ("behind", "8% slower in 6 rounds")
    assert race.over


def test_a_candidate_that_fails_leaves_the_race_with_the_reason() -> None:
    race = Race(3)
    race.fail(1, "its worker died")
    assert set(race.order()) == {0, 2}
    race.record({0: 1.0, 2: 2.0})
    assert (race.leader, race.runners[1].left, race.runners[1].why) == (0, "failed", "its worker died")


def test_rounds_run_in_different_orders() -> None:
    race = Race(8)
    orders = set()
    for _ in range(6):
        orders.add(race.order())
        race.record(dict.fromkeys(range(8), 1.0))
    assert len(orders) == 6


def test_equally_fast_candidates_settle_early() -> None:
    race, _ = run((1.0, 1.001, 0.999), lambda dice, turn: dice.gauss(1.0, 0.005), 1)
    assert race.settled
    assert race.rounds == LEAST_AGREEING
    assert race.running == (0, 1, 2)


def test_a_leader_within_a_tie_settles_the_race_on_a_noisy_machine() -> None:
    """The best turns of each differ by a tenth: it is unknown which one is the fastest, and it does not matter."""
    race = Race(2)
    race.record({0: 1.0, 1: 1.1})
    after_one = race.settled
    race.record({0: 1.1, 1: 1.02})
    assert (after_one, race.settled, race.leader) == (False, True, 0)


def test_a_leader_in_every_round_wins_while_the_machine_slows_down() -> None:
    race = Race(2)
    for factor in (1.0, 1.3, 1.7):
        assert not race.settled
        race.record({0: factor, 1: 1.1 * factor})
    assert race.settled
    assert (race.leader, race.rounds) == (0, 3)


def test_a_leader_that_loses_most_rounds_does_not_settle_the_race() -> None:
    """One turn of the leader was lucky; in the rounds that both ran, the other one is faster by a tenth."""
    race = Race(2)
    race.record({0: 1.00, 1: 1.04})
    race.record({0: 1.14, 1: 1.01})
    race.record({0: 1.14, 1: 1.01})
    assert race.leader == 0
    assert race._agrees() is False


def test_a_single_candidate_wins_at_once_or_leaves_no_leader() -> None:
    alone = Race(1)
    alone.record({0: 1.0})
    assert (alone.over, alone.leader) == (True, 0)
    nobody = Race(1)
    nobody.fail(0, "no")
    assert (nobody.over, nobody.leader) == (True, None)


def test_a_race_is_not_over_before_it_began() -> None:
    assert not Race(2).over
    assert not Race(1).over
