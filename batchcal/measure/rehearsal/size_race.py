"""The race of micro-batches: those around the fastest timed one, and the undivided one unless it was timed as much slower.

If the allocator keeps its memory, the sizes take turns of half a second in one child, so that changes of the machine that last
for seconds affect all sizes alike. On two cores whose speed varied by a fifth, a small CNN under tcmalloc then gave the same
order again and again (samples/s at 16: 899, 32: 971, 64: 1,006, 128: 1,002, 256: 967, 512: 937). With a child for every turn,
which starts, warms up and runs for a moment, one size gave 522 and then 900. If the allocator returns large blocks, a child runs
each size once, the smallest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from batchcal.calibration.records.rehearsal import SizeRace, SizeTime
from batchcal.calibration.records.size_rule import SizeRule
from batchcal.calibration.records.speed import MUCH_SLOWER, TURNS_DIFFER, Speeds, StepTime
from batchcal.measure.children.probe import TimingReport, TimingRequest
from batchcal.measure.outcomes import allowed_for
from batchcal.measure.race.noise import disturbed
from batchcal.measure.race.race import MOST_ROUNDS, Race
from batchcal.measure.rehearsal.stage import TURN_S, Stage, divided
from batchcal.plan.plan import Plan
from batchcal.values.calibration_events import PhaseBegan

FASTEST_TIMED: Final = 3
"""Number of the fastest timed sizes that are raced if each round needs a child. Each size was timed once, and a burst of other
load may have hit one of them."""
SMALLEST: Final = 8
HANDS_BACK: Final = frozenset({"default", "thp"})
"""Policies that return large blocks to the system: a small size after a large one finds a heap that it would not have made."""


def race_sizes(
    stage: Stage, plan: Plan, speeds: Speeds | None, capacity: int, *, rule: SizeRule | None = None
) -> tuple[SizeRace, tuple[StepTime, ...]] | None:
    """Race sizes for the effective batch of `plan`, all else equal. Return the race, and its times if no workers ran. None:
    there is nothing to choose between."""
    effective = sum(plan.micro_batches)
    timed = [time for time in (speeds.times if speeds is not None else ()) if time.micro_batch <= effective]
    timed.sort(key=lambda time: -time.samples_per_s(effective))
    largest = min(effective, capacity)
    rule = rule or SizeRule()
    together = plan.num_workers == 0 and not (plan.device == "cpu" and plan.allocator in HANDS_BACK)
    if together and timed:
        fastest = timed[0].samples_per_s(effective)
        alike = {time.micro_batch for time in timed if time.samples_per_s(effective) * (1 + TURNS_DIFFER) >= fastest}
        near = around(timed[0].micro_batch, largest, multiple_of=rule.multiple_of)
        sizes = tuple(sorted({size for size in alike.union(near) if size <= largest}))
    else:
        sizes = tuple(sorted({time.micro_batch for time in timed[:FASTEST_TIMED]} | {largest}))
    sizes = tuple(size for size in sizes if rule.admits(size) or size == largest)
    hopeless = {
        time.micro_batch for time in timed if time.samples_per_s(effective) * MUCH_SLOWER < timed[0].samples_per_s(effective)
    }
    sizes = tuple(size for size in sizes if size not in hopeless)
    if len(sizes) < 2:
        return None
    text = ", ".join(map(str, sizes))
    stage.progress.event(PhaseBegan(phase="sizes", device=plan.device, why=f"micro-batches {text}"))
    times: tuple[StepTime, ...] = ()
    if together:
        race, times = _together(stage, plan, sizes)
    elif plan.num_workers == 0:
        race, times = _in_ascending_order(stage, plan, sizes)
    else:
        race = stage.race([divided(plan, size) for size in sizes])
    if any(not runner.times and runner.left is None for runner in race.runners):
        return None  # the fastest of some is not the fastest
    raced = SizeRace(
        device=plan.device,
        allocator=plan.allocator,
        effective_batch=effective,
        sizes=tuple(
            SizeTime(
                micro_batch=size,
                samples_per_s=1 / runner.best if runner.times else None,
                rounds=len(runner.times),
                why=runner.why,
            )
            for size, runner in zip(sizes, race.runners, strict=True)
        ),
        settled=race.settled,
    )
    return raced, times


def around(fastest: int, largest: int, *, multiple_of: int = 1) -> tuple[int, ...]:
    """Return half of `fastest`, `fastest` and its double up to `largest`, and `largest` itself, in ascending order. The timing's
    own sizes are two doublings apart."""
    rounded = {round(fastest * factor / multiple_of) * multiple_of for factor in (0.5, 1.0, 2.0)}
    least = min(fastest, -(-SMALLEST // multiple_of) * multiple_of)
    return tuple(sorted({size for size in rounded if least <= size <= largest} | {largest}))


def run_in_turns(times: Sequence[StepTime], sizes: Sequence[int], effective_batch: int) -> Race:
    """Return the race of a timing in rounds. No size runs twice in a round. If a size has undisturbed times, only these count."""
    race = Race(len(sizes))
    clear = {time.micro_batch for time in times if not disturbed(time.foreign_share)}
    seconds: dict[int, float] = {}
    ran: set[int] = set()
    for time in times:
        place = sizes.index(time.micro_batch)
        if place in ran:
            if seconds:
                race.record(seconds)
            seconds, ran = {}, set()
        ran.add(place)
        if time.micro_batch not in clear or not disturbed(time.foreign_share):
            seconds[place] = 1 / time.samples_per_s(effective_batch)
    if seconds:
        race.record(seconds)
    return race


def _in_ascending_order(stage: Stage, plan: Plan, sizes: tuple[int, ...]) -> tuple[Race, tuple[StepTime, ...]]:
    """Race sizes with a child for each round, in which a size does not find the heap of a larger one."""
    effective, rate = sum(plan.micro_batches), plan.predicted_samples_per_s
    race, times = Race(len(sizes)), list[StepTime]()
    while not race.over and stage.left_s() > 0:
        report = stage.probe.time_sizes(
            TimingRequest(
                device=plan.device,
                allocator=plan.allocator,
                micro_batches=tuple(sizes[place] for place in race.running),
                threads=(plan.intra_op_threads,),
                complete=True,
                samples=None if rate is None else max(1, math.ceil(TURN_S * rate)),
                allowed_bytes=allowed_for(plan.budget_bytes),
                limit_s=stage.left_s(),
            )
        )
        times.extend(report.times)
        seconds = {sizes.index(time.micro_batch): 1 / time.samples_per_s(effective) for time in report.times}
        for place in race.running:
            if report.why_ended and place not in seconds:
                race.fail(place, report.why_ended)
        if not seconds:
            break
        race.record(seconds)
    return race, tuple(times)


def _together(stage: Stage, plan: Plan, sizes: tuple[int, ...]) -> tuple[Race, tuple[StepTime, ...]]:
    effective, rate = sum(plan.micro_batches), plan.predicted_samples_per_s
    running, why = sizes, ""
    report = TimingReport(times=())
    while not report.times and len(running) > 1 and stage.left_s() > 0:
        report = stage.probe.time_sizes(
            TimingRequest(
                device=plan.device,
                allocator=plan.allocator,
                micro_batches=running,
                threads=(plan.intra_op_threads,),
                rounds=MOST_ROUNDS,
                samples=None if rate is None else max(1, math.ceil(TURN_S * rate)),
                allowed_bytes=allowed_for(plan.budget_bytes),
                limit_s=stage.left_s(),
            )
        )
        if not report.times:
            # A size that cannot run ends the timing before any size is timed: all are warmed up first, in ascending order.
            running, why = running[:-1], report.why_ended or "it could not be timed"
    race = run_in_turns(report.times, sizes, effective)
    for place in range(len(running), len(sizes)):
        race.fail(place, why)
    return race, report.times
