"""The race of threads and DataLoader workers: pruned by conservation of work, then run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.rehearsal import Finalist, Finals, Left
from batchcal.calibration.speed import StepTime
from batchcal.measure.attempts import allowed_for
from batchcal.measure.pipeline.candidates import Candidate, Room, candidates, forbidden
from batchcal.measure.probe import LapRequest
from batchcal.measure.race.race import TIE, Race
from batchcal.measure.rehearsal.stage import Stage
from batchcal.measure.rehearsal.work import Work
from batchcal.plan.plan import Plan
from batchcal.plan.workers import worth_it

MOST_WITH_WORKERS: Final = 3
"""Run at most, beside the one without."""
MOST_THREADS: Final = 3
PREFETCH: Final = 2
"""torch's own: more hides unevenness, of which the race sees nothing."""
LAP_S: Final = 6.0
"""For the lap of threads, at most."""


@dataclass(frozen=True)
class Loading:
    """What is known of loading, and what may be tried."""

    room: Room
    batch_bytes: float
    """Of one micro-batch."""
    tensors: int = 1
    """In a batch, at least."""
    stream: bool = False
    """The data can only be read in order, by one worker at most."""
    pinned_workers: int | None = None
    """What the user asked for; then only the threads are chosen."""


def timed_threads(stage: Stage, plan: Plan) -> tuple[dict[int, StepTime], str]:
    """What one micro-batch of `plan` takes with each number of threads, without workers; and why that ended early."""
    ladder = thread_ladder(plan.intra_op_threads)
    report = stage.probe.lap(
        LapRequest(
            device=plan.device,
            allocator=plan.allocator,
            micro_batches=(plan.micro_batch,),
            threads=ladder * 2,  # there and back again: what comes and goes meets nobody twice
            allowed_bytes=allowed_for(plan.budget_bytes),
            limit_s=min(LAP_S, stage.left_s()),
        )
    )
    found: dict[int, StepTime] = {}
    for time in report.times:
        found[time.threads] = time if time.threads not in found else found[time.threads].or_better(time)
    return found, report.why_ended


def thread_ladder(most: int) -> tuple[int, ...]:
    """`most`, its half, and 1: where fewer threads are as fast, they are the better ones."""
    return tuple(dict.fromkeys((most, max(1, most // 2), 1)))[:MOST_THREADS]


def race_finals(stage: Stage, plan: Plan, work: Work, loading: Loading) -> Finals:
    """The fastest threads and workers for `plan`, which has no workers."""
    finalists = entries(work, loading)
    runners = [place for place, one in enumerate(finalists) if not one.left]
    if len(runners) == 1:
        alone = finalists[runners[0]]
        if not alone.num_workers:
            finalists[runners[0]] = alone.model_copy(update={"samples_per_s": alone.bound_samples_per_s})
        return _finals(plan, finalists, runners[0], settled=True)
    race = stage.race([with_finalist(plan, finalists[place]) for place in runners])
    for runner, place in zip(race.runners, runners, strict=True):
        finalists[place] = finalists[place].model_copy(
            update={
                "samples_per_s": 1 / runner.best if runner.times else None,
                "rounds": len(runner.times),
                "left": runner.left or ("" if runner.times else "no-time"),
                "why": runner.why,
            }
        )
    return _finals(plan, finalists, runners[_simplest(race)], settled=race.settled)


def entries(work: Work, loading: Loading) -> list[Finalist]:
    """All that are thought of, the simplest first; only those that may gain, and that arithmetic allows, are left in."""
    seconds = {threads: work.alone_s(threads) for threads in work.threads}
    best = min(threads for threads, each in seconds.items() if each <= min(seconds.values()) * TIE)
    pinned = loading.pinned_workers
    found = [
        Finalist(
            intra_op_threads=threads,
            num_workers=pinned or 0,
            prefetch_factor=PREFETCH if pinned else None,
            bound_samples_per_s=1 / each,
            left="" if threads == best else "pruned",
            why="" if threads == best else _slower(each / seconds[best]),
        )
        for threads, each in seconds.items()
    ]
    if pinned is not None:
        return found
    loaders = [
        loader
        for loader in candidates(loading.room.cores, stream=loading.stream)
        if loader.num_workers and loader.prefetch_factor == PREFETCH
    ]
    tried = [_with_workers(work, loading, loader, threads) for loader in loaders for threads in work.threads]
    promising = sorted((one for one in tried if not one.left), key=lambda one: -one.bound_samples_per_s)
    for one in tried:
        behind = not one.left and one not in promising[:MOST_WITH_WORKERS]
        found.append(one.model_copy(update={"left": "pruned", "why": "others promise more"}) if behind else one)
    return found


def with_finalist(plan: Plan, finalist: Finalist) -> Plan:
    """`plan` with these threads and workers."""
    return plan.model_copy(
        update={
            "intra_op_threads": finalist.intra_op_threads,
            "num_workers": finalist.num_workers,
            "prefetch_factor": finalist.prefetch_factor,
            "persistent_workers": finalist.num_workers > 0,
        }
    )


def _with_workers(work: Work, loading: Loading, loader: Candidate, threads: int) -> Finalist:
    least_s = work.least_s(threads, loader.num_workers)
    gain = min(work.alone_s(each) for each in work.threads) / least_s
    left: Left = ""
    why = forbidden(loader, loading.room, batch_bytes=loading.batch_bytes, tensors=loading.tensors)
    if why:
        left = "failed"
    elif not worth_it(gain, work.cores):
        left, why = "pruned", f"{max(0.0, gain - 1):.0%} at most to be gained"
    return Finalist(
        intra_op_threads=threads,
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor,
        bound_samples_per_s=1 / least_s,
        left=left,
        why=why,
    )


def _simplest(race: Race) -> int:
    """The leader, or who comes before it in the list and is as fast. The first where nobody was timed."""
    leader = race.leader
    if leader is None:
        return 0
    best = race.runners[leader].best
    return next(place for place in race.running if race.runners[place].times and race.runners[place].best <= best * TIE)


def _finals(plan: Plan, finalists: Sequence[Finalist], winner: int, *, settled: bool) -> Finals:
    others = [one for place, one in enumerate(finalists) if place != winner]
    others.sort(key=lambda one: -(one.samples_per_s or 0.0))
    return Finals(
        device=plan.device,
        allocator=plan.allocator,
        micro_batch=plan.micro_batch,
        finalists=(finalists[winner], *others),
        settled=settled,
    )


def _slower(ratio: float) -> str:
    return f"{ratio - 1:.0%} slower, fetching in the training" if ratio > TIE else "no faster, and more threads"
