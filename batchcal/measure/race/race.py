"""A race: rounds in which every candidate still running is timed once.

Other load on a machine only makes a turn longer, so the best turns of two candidates are compared. A candidate is dropped only if
the ratios within the rounds that both ran agree. Under bursts of other load half of the time, with eight candidates from 1.0 to
3.5, the leader is within 3 % of the best in 95-100 of 100 races. If medians of the paired ratios alone decide, it is in 71-93,
for as many turns.

A race also ends when the leader is good enough: no candidate is expected to be faster by more than a tie. Replayed over recorded
turns of three policies at three sizes (handwriting, textpair, patchtst), this takes 10 to 27 % fewer turns. In the mean, the
chosen candidate is 0.6, 2.8 and 1.2 % slower than the best; without this rule 0.6, 2.8 and 0.9 %.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

from batchcal.calibration.records.speed import TURNS_DIFFER

LIMITS: Final = ((6, 1.05), (4, 1.15), (3, 1.3), (2, 1.5))
"""(rounds, factor): after so many rounds, a candidate leaves that takes longer than the leader by this factor. Two rounds are too
few to detect 15 %: two bursts may have hit both."""
SLOWER: Final = 1.15
LEAST_ROUNDS: Final = 3
LEAST_AGREEING: Final = 2
"""Minimum number of rounds after which a leader may be good enough. The two best turns of each candidate must then agree: where
bursts hit half of the turns, ratios of turns are no evidence."""
MOST_ROUNDS: Final = 12
TIE: Final = 1.03
"""Two turns of one candidate within this factor were not disturbed. Of two candidates within it, neither counts as faster."""

Left = Literal["slower", "behind", "failed"]
"""`slower`: slower by 15 % or more; `behind`: slower by less, but surely; `failed`: it could not run."""


@dataclass
class Runner:
    """One candidate, by its place in the list."""

    place: int
    times: dict[int, float] = field(default_factory=dict)
    """Seconds per sample, by round."""
    left: Left | None = None
    why: str = ""

    @property
    def best(self) -> float:
        return min(self.times.values())

    @property
    def doubt(self) -> float:
        """Distance of the second-best turn from the best, as a share of the best. Infinite if there is only one."""
        ordered = sorted(self.times.values())
        return ordered[1] / ordered[0] - 1 if len(ordered) > 1 else float("inf")


class Race:
    """State of a race. It takes times round by round, and gives the running candidates, the leader and whether it is settled."""

    def __init__(self, candidates: int) -> None:
        self.runners = tuple(Runner(place) for place in range(candidates))
        self.rounds = 0

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(runner.place for runner in self.runners if runner.left is None)

    def order(self) -> tuple[int, ...]:
        """Return the order of the next round. It changes each time, so that temporary load does not hit one candidate again."""
        places = list(self.running)
        random.Random(self.rounds).shuffle(places)
        return tuple(places)

    def record(self, times: Mapping[int, float]) -> None:
        """Record one round: seconds per sample by place. A candidate that is missing did not run in this round."""
        for place, seconds in times.items():
            self.runners[place].times[self.rounds] = seconds
        self.rounds += 1
        self._remove_slow()

    def fail(self, place: int, why: str) -> None:
        """Remove a candidate that cannot run, and record the reason."""
        self.runners[place].left, self.runners[place].why = "failed", why

    @property
    def leader(self) -> int | None:
        """The fastest of the running candidates."""
        timed = [place for place in self.running if self.runners[place].times]
        return min(timed, key=lambda place: self.runners[place].best, default=None)

    @property
    def settled(self) -> bool:
        """True if another round is not expected to find a candidate that is faster than the leader by more than a tie."""
        running = [self.runners[place] for place in self.running]
        if self.leader is None or not all(runner.times for runner in running):
            return False
        if len(running) < 2:
            return True
        best = self.runners[self.leader].best
        if self._agrees() or self._is_ahead():
            return True
        return self.rounds >= LEAST_ROUNDS and all(
            # Undisturbed in two turns, or slower even if its next turn were better by as much as the last was.
            runner.doubt <= TIE - 1 or runner.best > best * (1 + runner.doubt)
            for runner in running
            if runner.place != self.leader
        )

    @property
    def over(self) -> bool:
        """True if another round gives no information, or enough rounds were run."""
        return self.settled or self.rounds >= MOST_ROUNDS or not self.running

    def _agrees(self) -> bool:
        """True if the leader, which has the best turn of all, is good enough: the turns differ little, and in the rounds that
        both ran no candidate is faster than the leader by more than a tie."""
        running = [self.runners[place] for place in self.running]
        if self.leader is None or self.rounds < LEAST_AGREEING or any(runner.doubt > TURNS_DIFFER for runner in running):
            return False
        leader = self.runners[self.leader]
        return all(_median_ratio(runner, leader) * TIE >= 1 for runner in running if runner is not leader)

    def _is_ahead(self) -> bool:
        """True if the leader was faster than every other candidate, by more than a tie, in each of the rounds that both ran."""
        if self.leader is None:
            return False
        leader = self.runners[self.leader]
        others = (self.runners[place].times for place in self.running if place != self.leader)
        common = ([times[number] / leader.times[number] for number in times if number in leader.times] for times in others)
        return all(len(ratios) >= LEAST_ROUNDS and min(ratios) > TIE for ratios in common)

    def _remove_slow(self) -> None:
        if self.leader is None:
            return
        leader = self.runners[self.leader]
        for place in self.running:
            runner = self.runners[place]
            rounds = len(runner.times)
            limit = next((limit for least, limit in LIMITS if rounds >= least), None)
            if runner is leader or limit is None:
                continue
            slower = min(runner.best / leader.best, _median_ratio(runner, leader))
            if slower > limit:
                runner.left = "behind" if slower <= SLOWER else "slower"
                runner.why = f"{slower - 1:.0%} slower in {rounds} rounds"


def _median_ratio(runner: Runner, leader: Runner) -> float:
    """Return the median of the ratios within the rounds that both ran. 1: there are none."""
    ratios = [seconds / leader.times[number] for number, seconds in runner.times.items() if number in leader.times]
    return median(ratios) if ratios else 1.0
