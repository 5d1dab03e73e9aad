"""The race of micro-batches: those that were fast in a lap, and the undivided one, as whole optimizer steps."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.rehearsal import SizeRace, SizeTime
from batchcal.calibration.speed import Speeds
from batchcal.measure.rehearsal.stage import Stage, divided
from batchcal.plan.plan import Plan

FROM_THE_LAP: Final = 3
"""The fastest of the lap that are raced. A lap times each size once, and one of them may have met somebody else's burst."""


def sizes_to_race(speeds: Speeds | None, plan: Plan, capacity: int) -> tuple[int, ...]:
    """The fastest sizes of the lap and the largest that the effective batch and memory allow, by rising size."""
    effective = sum(plan.micro_batches)
    timed = [time for time in (speeds.times if speeds is not None else ()) if time.micro_batch <= effective]
    timed.sort(key=lambda time: -time.samples_per_s(effective))
    return tuple(sorted({time.micro_batch for time in timed[:FROM_THE_LAP]} | {min(effective, capacity)}))


def race_sizes(stage: Stage, plan: Plan, sizes: tuple[int, ...]) -> SizeRace:
    """The micro-batches `sizes` for `plan`, all else alike."""
    race = stage.race([divided(plan, size) for size in sizes])
    return SizeRace(
        device=plan.device,
        allocator=plan.allocator,
        effective_batch=sum(plan.micro_batches),
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
