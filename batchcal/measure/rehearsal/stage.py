"""Runs of complete plans within the remaining time, one child per plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from batchcal.core.clock import Clock
from batchcal.core.progress import Progress
from batchcal.guard.outcome import Fits
from batchcal.measure.children.probe import Observation, Probe, RehearsalRequest
from batchcal.measure.outcomes import allowed_for, described
from batchcal.measure.race.race import Race
from batchcal.plan.division.split import split, split_by
from batchcal.plan.plan import Plan
from batchcal.values.calibration_events import CalibrationEvent

TURN_S: Final = 0.5
"""Minimum seconds for which a plan is timed in a race."""
TURN_WITH_WORKERS_S: Final = 2.5
"""Minimum seconds of a run if workers fetch: they start, and the batches that they read ahead are not timed."""
GROUPS: Final = 4
"""Optimizer steps of a complete rehearsal beside those of the largest samples, including evaluations."""
LEAST_MICRO_BATCHES: Final = 2
"""Minimum number of micro-batches of a rehearsed step that has more. From the second on, memory does not grow."""
SHARE_OF_A_TURN: Final = 0.5
"""Share of the remaining time that one run may be expected to take."""


@dataclass(frozen=True)
class Stage:
    probe: Probe
    clock: Clock
    progress: Progress[CalibrationEvent]
    until: float
    """Time of the clock from which on no further child is started."""

    def left_s(self) -> float:
        return self.until - self.clock.monotonic()

    def part(self, share: float) -> Stage:
        """Return the same stage with `share` of the remaining time."""
        return replace(self, until=self.clock.monotonic() + max(0.0, self.left_s()) * share)

    def turn(self, plan: Plan, *, keep_activations: bool = False) -> Observation:
        """Time `plan` as one of several in a race. Run no more of each optimizer step than that takes."""
        limit_s = max(self.left_s(), _least_s(plan))
        return self.probe.observe(
            RehearsalRequest(
                plan=plan,
                micro_batches=first_of(plan, TURN_S, least=1),
                allowed_bytes=allowed_for(plan.budget_bytes),
                budget_bytes=plan.budget_bytes,
                keep_activations=keep_activations,
                least_s=TURN_S,
                limit_s=limit_s,
            )
        )

    def race(self, plans: Sequence[Plan]) -> Race:
        """Race `plans`, one turn each per round, while there is time. A plan that cannot run leaves."""
        race = Race(len(plans))
        while not race.over and self.left_s() > 0:
            seconds: dict[int, float] = {}
            for place in race.order():
                if self.left_s() <= 0:
                    break
                outcome = self.turn(plans[place]).outcome
                if isinstance(outcome, Fits):
                    seconds[place] = 1 / outcome.samples_per_s
                else:
                    race.fail(place, described(outcome))
            if not seconds:
                break
            race.record(seconds)
        return race

    def rehearse(self, plan: Plan) -> tuple[Observation, int]:
        """Run `plan` to measure its peak and its rate, with evaluations at the size of training and at its own. Return also the
        number of micro-batches that were run of each step."""
        limit_s = max(self.left_s() * SHARE_OF_A_TURN, _least_s(plan))
        cut = first_of(plan, limit_s / GROUPS, least=LEAST_MICRO_BATCHES)
        evaluations = tuple(dict.fromkeys((min(plan.micro_batch, plan.eval_batch), plan.eval_batch)))
        report = self.probe.observe(
            RehearsalRequest(
                plan=plan,
                micro_batches=cut,
                eval_batches=evaluations,
                worst_case=True,
                allowed_bytes=allowed_for(plan.budget_bytes),
                budget_bytes=plan.budget_bytes,
                least_s=TURN_S,
                limit_s=limit_s,
            )
        )
        return report, len(cut)


def _least_s(plan: Plan) -> float:
    return TURN_WITH_WORKERS_S if plan.num_workers else TURN_S


def divided(plan: Plan, largest: int) -> Plan:
    """Return `plan` with its effective batch divided into the fewest micro-batches of at most `largest`."""
    samples, rule = sum(plan.micro_batches), plan.size_rule
    sizes = (() if rule is None else split_by(rule, samples, largest)) or split(samples, largest)
    return plan.model_copy(update={"micro_batches": sizes, "micro_batch": sizes[0], "accumulation_steps": len(sizes)})


def first_of(plan: Plan, seconds: float, *, least: int) -> tuple[int, ...]:
    """Return the first micro-batches of a step: as many as are expected to take `seconds`, and at least `least` if there are."""
    rate = plan.predicted_samples_per_s
    most = len(plan.micro_batches) if rate is None else math.ceil(seconds * rate / plan.micro_batch)
    return plan.micro_batches[: max(least, most)]
