"""Race for the fastest allocator policy. Each turn runs in its own child."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from batchcal.calibration.records.memory_model import UNBOUNDED, MemoryModel
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import Speeds, StepTime
from batchcal.calibration.schema import Options
from batchcal.core.clock import Clock
from batchcal.core.progress import Progress
from batchcal.measure.children.probe import Examination, Probe, TimingRequest
from batchcal.measure.race.noise import disturbed
from batchcal.measure.race.race import LEAST_AGREEING, LEAST_ROUNDS, TIE, Race
from batchcal.measure.search.prior import Prior
from batchcal.values.calibration_events import CalibrationEvent, TurnEnded

SMALLEST: Final = 16
APART: Final = 4
"""Factor between one size and the next: enough to distinguish policies. Sizes in between are raced once the policy is known."""
MOST: Final = 3
BEATEN: Final = {1: 1.5, 2: 1.3}
"""By rounds: factor by which a policy must be faster to win over one that usually is, after so few rounds. The same turn took 1.4
times as long a few seconds later."""
ROOM_SHARE: Final = 0.5
"""Share of the budget that the largest micro-batch of the race may be expected to take. No policy's memory is known yet."""
NO_TIME: Final = "no time was left"
TURN_SHARE: Final = 0.2
"""Share of the time of the race that one turn may take."""


def race_bytes(budget_bytes: int) -> int:
    """Return the memory that a run of the race may be expected to take, bytes."""
    return round(budget_bytes * ROOM_SHARE)


def sizes_for(model: MemoryModel, *, budget_bytes: int, ceiling: int, multiple_of: int = 1) -> tuple[int, ...]:
    """Return micro-batches to time, up to the size that half of the budget is expected to hold: a few, each four times as large
    as the one before."""
    top = model.largest_within(model.base_bytes + (budget_bytes - model.base_bytes) * ROOM_SHARE, ceiling=ceiling)
    top = max(top - top % multiple_of, min(multiple_of, ceiling))
    sizes: list[int] = []
    size = -(-SMALLEST // multiple_of) * multiple_of
    while size <= top and len(sizes) < MOST:
        sizes.append(size)
        size *= APART
    if not sizes or (len(sizes) < MOST and sizes[-1] * 2 <= top):
        sizes.append(top)
    return tuple(sizes)


def policy_race(
    probe: Probe,
    examination: Examination,
    *,
    device: str,
    policies: Sequence[str],
    budget_bytes: int,
    options: Options,
    rule: SizeRule,
    limit_s: float,
    clock: Clock,
    progress: Progress[CalibrationEvent],
) -> PolicyRace:
    """Return the race of `policies` for the examined task. A single policy is also timed at every size."""
    prior = Prior.of(device, policies[0])
    model = MemoryModel(
        base_bytes=examination.device_base_bytes,
        ratio=prior.ratio,
        shape=prior.shape(examination.shapes["train"]),
        source=examination.shape_source,
    )
    effective_batch = options.effective_batch or examination.facts.effective_batch
    bounds = (examination.facts.train_samples, options.max_batch, effective_batch)
    ceiling = min(bound for bound in (*bounds, UNBOUNDED) if bound is not None)
    sizes = sizes_for(model, budget_bytes=budget_bytes, ceiling=ceiling, multiple_of=rule.multiple_of)
    sizes = tuple(size for size in sizes if rule.admits(size)) or (max(rule.at_most(sizes[-1]), rule.smallest),)
    return PolicyRace(
        probe=probe,
        device=device,
        policies=policies,
        sizes=sizes,
        effective_batch=effective_batch or sizes[-1],
        allowed_bytes=budget_bytes,
        limit_s=limit_s,
        clock=clock,
        progress=progress,
    )


@dataclass
class PolicyRace:
    """The race of policies. The first turn of a policy runs all sizes; later turns repeat the fastest one."""

    probe: Probe
    device: str
    policies: Sequence[str]
    """The simplest first. It wins if none is faster."""
    sizes: tuple[int, ...]
    effective_batch: int
    allowed_bytes: int
    limit_s: float
    clock: Clock
    progress: Progress[CalibrationEvent]
    _times: dict[int, dict[int, StepTime]] = field(default_factory=dict)
    _disturbed: Counter[int] = field(default_factory=Counter)
    _samples: int | None = None
    """Number of samples over which the first turn timed its sizes."""

    def run(self) -> tuple[str | None, tuple[Speeds, ...]]:
        """Return the policy to use, or None if none could be timed, and the results of each in the order of `policies`.

        Raises:
            BatchcalError: as the probe's `time_sizes`.
        """
        race = Race(len(self.policies))
        start_s = self.clock.monotonic()
        if self.limit_s > 0:
            self.probe.prepare(self.policies, race_bytes(self.allowed_bytes))
        while not race.over:
            seconds_by_place: dict[int, float] = {}
            # The most promising ones run first, in case there is no time for all.
            order = race.order() if race.rounds else sorted(race.order(), key=lambda place: _precedence(self.policies[place]))
            for place in order:
                left_s = self.limit_s - (self.clock.monotonic() - start_s)
                # One turn is timed in any case, if there was any time: starting many policies may have taken all of it.
                if left_s <= 0 and (self.limit_s <= 0 or any(self._times.values())):
                    break
                seconds = self._turn(race, place, max(0.0, min(left_s, self.limit_s * TURN_SHARE)))
                if seconds is not None:
                    seconds_by_place[place] = seconds
            if not seconds_by_place:
                break
            race.record(seconds_by_place)
        return self._chosen(race), tuple(self._speeds(race, place) for place in range(len(self.policies)))

    def _turn(self, race: Race, place: int, limit_s: float) -> float | None:
        """Time one turn. Return the seconds per sample at the fastest size of this policy. None: nothing was timed."""
        times = self._times.setdefault(place, {})
        sizes = self.sizes if not times else (self._fastest(place).micro_batch,)
        report = self.probe.time_sizes(
            TimingRequest(
                device=self.device,
                allocator=self.policies[place],
                micro_batches=sizes,
                samples=self._samples,
                allowed_bytes=self.allowed_bytes,
                limit_s=limit_s,
            )
        )
        if report.times and self._samples is None:
            self._samples = report.times[0].steps * report.times[0].micro_batch
        self._disturbed[place] += sum(disturbed(time.foreign_share) for time in report.times)
        for time in report.times:
            times[time.micro_batch] = times[time.micro_batch].or_better(time) if time.micro_batch in times else time
        if not report.times:
            if report.why_ended or not times:  # else the time ended, and earlier results remain valid
                race.fail(place, report.why_ended or NO_TIME)
            return None
        fastest = self._fastest(place) if len(sizes) > 1 else report.times[0]
        rate = fastest.samples_per_s(self.effective_batch)
        self.progress.event(
            TurnEnded(
                allocator=self.policies[place],
                micro_batch=fastest.micro_batch,
                samples_per_s=rate,
                ended=report.why_ended or None,
            )
        )
        return 1 / rate

    def _fastest(self, place: int) -> StepTime:
        return max(self._times[place].values(), key=lambda time: time.samples_per_s(self.effective_batch))

    def _chosen(self, race: Race) -> str | None:
        leader = race.leader
        if leader is None:
            return None
        best = race.runners[leader].best
        timed = [race.runners[place] for place in race.running if race.runners[place].times]
        certain = race.rounds >= LEAST_ROUNDS or (race.settled and race.rounds >= LEAST_AGREEING)
        if not certain:
            # The machine may have changed between so few turns: a policy that is usually faster must be beaten clearly.
            timed.sort(key=lambda runner: _precedence(self.policies[runner.place]))
            return next(
                self.policies[runner.place] for runner in timed if runner.best <= best * BEATEN[len(race.runners[leader].times)]
            )
        return next(self.policies[runner.place] for runner in timed if runner.best <= best * TIE)

    def _speeds(self, race: Race, place: int) -> Speeds:
        runner = race.runners[place]
        times = self._times.get(place, {})
        return Speeds(
            device=self.device,
            allocator=self.policies[place],
            times=tuple(times[size] for size in sorted(times)),
            rounds=len(runner.times),
            left=runner.left or "",
            why=runner.why,
            disturbed=self._disturbed[place],
            spread=runner.doubt if len(runner.times) > 1 else None,
        )


def _precedence(policy: str) -> int:
    """Rank of a policy: libraries first (fastest on most workloads, 1.4-2.9 times `default`), then `retain`."""
    return {"retain": 1, "default": 2}.get(policy, 0)
