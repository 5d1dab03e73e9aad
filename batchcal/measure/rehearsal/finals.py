"""The race of threads and DataLoader workers: pruned by conservation of work, then run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchcal.calibration.records.rehearsal import Finalist, Finals, Left
from batchcal.calibration.records.speed import StepTime
from batchcal.measure.children.probe import TimingRequest
from batchcal.measure.outcomes import allowed_for
from batchcal.measure.pipeline.candidates import LoaderCandidate, candidates
from batchcal.measure.race.race import MOST_ROUNDS, TIE, Race, Runner
from batchcal.measure.rehearsal.loading import FURTHER_AHEAD, Loading
from batchcal.measure.rehearsal.stage import Stage
from batchcal.measure.rehearsal.work_bound import WorkBound
from batchcal.plan.plan import Plan
from batchcal.plan.workers import worth_it
from batchcal.workload.data.in_flight import PREFETCH_FACTOR

MOST_WITH_WORKERS: Final = 3
"""Maximum number of candidates with workers to run, beside the one without."""
MOST_THREADS: Final = 3
TIMING_S: Final = 6.0
SHARE_OF_TIMING: Final = 0.3
"""Limits of the timing of threads: seconds, and share of the remaining time."""
WAITING: Final = 0.95
"""Share of the rate that conservation of work allows. A winner below it waits for batches that may be read further ahead."""


def timed_threads(stage: Stage, plan: Plan) -> tuple[dict[int, StepTime], str]:
    """Time one micro-batch of `plan` with each number of threads, without workers. Return also the reason of an early end."""
    ladder = thread_ladder(plan.intra_op_threads)
    report = stage.probe.time_sizes(
        TimingRequest(
            device=plan.device,
            allocator=plan.allocator,
            micro_batches=(plan.micro_batch,),
            threads=ladder,
            rounds=MOST_ROUNDS,
            allowed_bytes=allowed_for(plan.budget_bytes),
            limit_s=min(TIMING_S, stage.left_s() * SHARE_OF_TIMING),
        )
    )
    times: dict[int, StepTime] = {}
    for time in report.times:
        times[time.threads] = time if time.threads not in times else times[time.threads].or_better(time)
    return times, report.why_ended


def thread_ladder(most: int) -> tuple[int, ...]:
    """Return `most`, its half, and 1: if fewer threads are as fast, they are the better choice."""
    return tuple(dict.fromkeys((most, max(1, most // 2), 1)))[:MOST_THREADS]


def race_finals(stage: Stage, plan: Plan, work: WorkBound, loading: Loading) -> Finals:
    """Find the fastest threads and workers for `plan`, which has no workers."""
    finalists = entries(work, loading)
    runners = [place for place, finalist in enumerate(finalists) if not finalist.left]
    if len(runners) == 1:
        single = finalists[runners[0]]
        if not single.num_workers:
            finalists[runners[0]] = single.model_copy(update={"samples_per_s": single.bound_samples_per_s})
        return _finals(plan, finalists, runners[0], settled=True)
    race = stage.race([with_finalist(plan, finalists[place]) for place in runners])
    for runner, place in zip(race.runners, runners, strict=True):
        finalists[place] = _ran(finalists[place], runner)
    winner, settled = runners[_simplest(race)], race.settled
    if not settled and finalists[winner].intra_op_threads < plan.intra_op_threads and not finalists[winner].num_workers:
        # In doubt, and the time was too short to decide: use all threads, as without batchcal.
        winner = next((place for place in runners if _usual(finalists[place], plan)), winner)
    variant = variant_of(finalists[winner], [finalists[place] for place in runners], loading)
    if variant is not None and stage.left_s() > 0:
        second_race = stage.race([with_finalist(plan, finalists[winner]), with_finalist(plan, variant)])
        finalists[winner] = _better(finalists[winner], second_race.runners[0])
        finalists.append(_ran(variant, second_race.runners[1]))
        settled = settled and second_race.settled
        winner = winner if _simplest(second_race) == 0 else len(finalists) - 1
    return _finals(plan, finalists, winner, settled=settled)


def variant_of(winner: Finalist, ran: Sequence[Finalist], loading: Loading) -> Finalist | None:
    """Return a loader that only the race gives a reason to try. If the training still waits, it reads further ahead. If none of
    the workers that ran could be used, it starts workers by another method. None: there is no such reason."""
    if loading.pinned_workers is not None:
        return None
    with_workers = [finalist for finalist in ran if finalist.num_workers]
    if winner.num_workers:
        waits = winner.samples_per_s is not None and winner.samples_per_s < winner.bound_samples_per_s * WAITING
        further = LoaderCandidate(num_workers=winner.num_workers, prefetch_factor=FURTHER_AHEAD)
        return _not_run(winner, prefetch_factor=FURTHER_AHEAD) if waits and not loading.forbids(further) else None
    if (
        loading.other_start is None
        or loading.start is not None
        or not with_workers
        or any(finalist.left != "failed" for finalist in with_workers)
    ):
        return None
    best = max(with_workers, key=lambda finalist: finalist.bound_samples_per_s)
    loader = LoaderCandidate(num_workers=best.num_workers, prefetch_factor=best.prefetch_factor)
    forbidden = loading.forbids(loader, start=loading.other_start)
    return None if forbidden else _not_run(best, multiprocessing_context=loading.other_start)


def entries(work: WorkBound, loading: Loading) -> list[Finalist]:
    """Return all finalists, the simplest first. Only those that may gain, and that arithmetic allows, stay in the race."""
    seconds = {threads: work.without_workers_s(threads) for threads in work.threads}
    best = min(threads for threads, each in seconds.items() if each <= min(seconds.values()) * TIE)
    most = work.threads[-1]
    stay = {best, most} if work.in_doubt(best, most) else {best}
    pinned = loading.pinned_workers
    finalists = [
        Finalist(
            intra_op_threads=threads,
            num_workers=pinned or 0,
            prefetch_factor=PREFETCH_FACTOR if pinned else None,
            multiprocessing_context=loading.start if pinned else None,
            bound_samples_per_s=1 / each,
            left="" if threads in stay else "pruned",
            why="" if threads in stay else _slower(each / seconds[best]),
        )
        for threads, each in seconds.items()
    ]
    if pinned is not None:
        return finalists
    loaders = [
        loader
        for loader in candidates(loading.room.cores, stream=loading.stream)
        if loader.num_workers and loader.prefetch_factor == PREFETCH_FACTOR
    ]
    loaders = [loading.affordable(loader) for loader in loaders]
    tried = [_with_workers(work, loading, loader, threads) for loader in loaders for threads in work.threads]
    promising = sorted(
        (candidate for candidate in tried if not candidate.left), key=lambda candidate: -candidate.bound_samples_per_s
    )
    for candidate in tried:
        behind = not candidate.left and candidate not in promising[:MOST_WITH_WORKERS]
        finalists.append(
            candidate.model_copy(update={"left": "pruned", "why": "other candidates may gain more"}) if behind else candidate
        )
    return finalists


def with_finalist(plan: Plan, finalist: Finalist) -> Plan:
    """Return `plan` with these threads and workers."""
    return plan.model_copy(
        update={
            "intra_op_threads": finalist.intra_op_threads,
            "num_workers": finalist.num_workers,
            "prefetch_factor": finalist.prefetch_factor,
            "persistent_workers": finalist.num_workers > 0,
            "multiprocessing_context": finalist.multiprocessing_context,
        }
    )


def _with_workers(work: WorkBound, loading: Loading, loader: LoaderCandidate, threads: int) -> Finalist:
    least_s = work.least_s(threads, loader.num_workers)
    gain = min(work.without_workers_s(each) for each in work.threads) / least_s
    left: Left = ""
    why = loading.forbids(loader)
    if why:
        left = "failed"
    elif not worth_it(gain, work.cores):
        left, why = "pruned", f"a gain of at most {max(0.0, gain - 1):.0%}"
    return Finalist(
        intra_op_threads=threads,
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor,
        multiprocessing_context=loading.start,
        bound_samples_per_s=1 / least_s,
        left=left,
        why=why,
    )


def _ran(finalist: Finalist, runner: Runner) -> Finalist:
    """Return `finalist` with the results of its turns."""
    return finalist.model_copy(
        update={
            "samples_per_s": 1 / runner.best if runner.times else None,
            "rounds": len(runner.times),
            "left": runner.left or ("" if runner.times else "no-time"),
            "why": runner.why,
        }
    )


def _better(winner: Finalist, runner: Runner) -> Finalist:
    """Return `winner` with the turns of a second race, too."""
    rate = max(winner.samples_per_s or 0.0, 1 / runner.best if runner.times else 0.0)
    return winner.model_copy(update={"samples_per_s": rate or None, "rounds": winner.rounds + len(runner.times)})


def _not_run(finalist: Finalist, **changes: object) -> Finalist:
    """Return a finalist that has not run yet: `finalist` with the changes."""
    return finalist.model_copy(update={"samples_per_s": None, "rounds": 0, "left": "", "why": "", **changes})


def _usual(finalist: Finalist, plan: Plan) -> bool:
    return finalist.intra_op_threads == plan.intra_op_threads and not finalist.num_workers and finalist.left != "failed"


def _simplest(race: Race) -> int:
    """Return the leader, or an earlier candidate in the list that is as fast. The first if none was timed."""
    leader = race.leader
    if leader is None:
        return 0
    best = race.runners[leader].best
    return next(place for place in race.running if race.runners[place].times and race.runners[place].best <= best * TIE)


def _finals(plan: Plan, finalists: Sequence[Finalist], winner: int, *, settled: bool) -> Finals:
    rest = [finalist for place, finalist in enumerate(finalists) if place != winner]
    rest.sort(key=lambda finalist: -(finalist.samples_per_s or 0.0))
    return Finals(
        device=plan.device,
        allocator=plan.allocator,
        micro_batch=plan.micro_batch,
        finalists=(finalists[winner], *rest),
        settled=settled,
    )


def _slower(ratio: float) -> str:
    return f"{ratio - 1:.0%} slower than the best number of threads" if ratio > TIE else "uses more threads and is not faster"
