"""Measurement of a task's input pipeline: DataLoaders race in one fenced child, and in another if one of them ends it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Final

from pydantic import ValidationError

from batchcal.calibration.records.pipeline import Left, LoaderConfig, LoaderTiming, PipelineResult
from batchcal.core.clock import Clock, SystemClock
from batchcal.core.errors import GuardError, Partial, UserCodeError
from batchcal.core.units import MIB, count_of
from batchcal.detect.environment import Environment
from batchcal.guard.channel.wire import Message
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.launch import FunctionJob, SpawnLauncher
from batchcal.guard.limits.watchdog import GroupMeter, trip_distance
from batchcal.guard.outcome import Infrastructure, Outcome, OutOfMemory, Phase, TimedOut, UserCodeFailed
from batchcal.guard.run import ChildLimits, Listener, run
from batchcal.machine.allocator import resolve
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.deadline import Deadline
from batchcal.measure.outcomes import described
from batchcal.measure.pipeline.candidates import CandidateLimits, limits_of
from batchcal.measure.pipeline.job import FetchAnswer, FetchArguments, fetch
from batchcal.measure.race.race import TIE, Race
from batchcal.values.settings import CalibrateSettings
from batchcal.workload.spec.reference import TaskReference

BATCH: Final = 128
FETCHES: Final = (8, 16)
"""Batches per turn: with a memory limit below 2 GiB, and from there on. More if they are cheap."""
FETCHES_FROM: Final = 2 << 30
LIMIT_S: Final = 4.4
"""Default limit of the complete measurement. A cold command takes about half a second more, and must end within five."""
LOAD_LIMIT_S: Final = 60.0
GRACE_S: Final = 30.0
"""Seconds to finish a round that has begun, and to wait for a worker that hangs."""
WORKER_BYTES: Final = 48 * MIB
"""Memory of a forked worker, with the pages that reference counts copy. See plan.workers."""
PARENT_BYTES: Final = 300 * MIB
"""Memory of the child that fetches: torch and the task."""
CLOSE_P95: Final = 1.1
UNFINISHED: Final[dict[Phase, str]] = {
    "start": "the start of the process",
    "load": "loading the task",
    "read": "reading samples",
    "warm-up": "reading the first batches",
    "measure": "timing the DataLoaders",
    "finish": "timing the DataLoaders",
}
"""Activity that did not end within its own limit, by phase."""


@dataclass(frozen=True)
class PipelineRequest:
    """Requested values. None: not requested."""

    batch: int | None = None
    fetches: int | None = None
    workers: int | None = None
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None
    seed: int = 0


def calibrate_pipeline(
    reference: TaskReference,
    request: PipelineRequest,
    *,
    environment: Environment,
    clock: Clock | None = None,
    environ: Mapping[str, str] | None = None,
) -> PipelineResult:
    """Race the DataLoaders that may work here over the training data of `reference`.

    Raises:
        UserCodeError: the task cannot be loaded, its data fails or hangs, or none of the DataLoaders that may be tried works.
        GuardError: no child could be started, or none lived long enough to report.
    """
    start_s = time.monotonic()
    limit_s = request.time_limit_s or LIMIT_S
    variables = dict(os.environ if environ is None else environ)
    deadline = Deadline(request.time_limit_s or CalibrateSettings.time_limit.default, start_s)
    meter = memory_meter()
    launcher = SpawnLauncher(resolve("default"), variables)
    arguments = FetchArguments(
        reference=reference,
        seed=request.seed,
        batch=request.batch or BATCH,
        fetches=request.fetches or FETCHES[environment.memory.limit.value >= FETCHES_FROM],
        until_s=start_s + limit_s,
        cores=environment.cpu.cores.value,
        pinned_workers=request.workers,
        room=_room(environment, meter, request.memory_limit_bytes),
    )
    try:
        while True:
            reports: list[int] = []
            job = FunctionJob(fetch, arguments.model_dump(mode="json"), reference.directory, variables)
            limits = _limits(meter, limit_s, request.memory_limit_bytes, deadline)
            ending = run(job, launcher, meter, limits, listen=_listener(reports))
            if ending.has_result:
                break
            why = _failure_description(ending, blamed=reports[-1] if reports else 0)
            arguments = arguments.model_copy(update={"fewer_than": reports[-1], "why_fewer": why})
    finally:
        launcher.close()
        meter.close()
    return _result(_answer(ending), start_s, clock or SystemClock())


def _free(meter: GroupMeter, memory_limit_bytes: int | None) -> int:
    """Return the memory that the child and its workers may hold, bytes."""
    free = max(0, meter.limit_bytes - trip_distance(meter.limit_bytes, armed=False) - meter.hard_bytes())
    return free if memory_limit_bytes is None else min(free, memory_limit_bytes)


def _room(environment: Environment, meter: GroupMeter, memory_limit_bytes: int | None) -> CandidateLimits:
    free = _free(meter, memory_limit_bytes)
    return limits_of(environment, memory_bytes=free - PARENT_BYTES, worker_bytes=WORKER_BYTES)


def _limits(meter: GroupMeter, limit_s: float, memory_limit_bytes: int | None, deadline: Deadline) -> ChildLimits:
    # Workers would inherit the data limit. The watchdog measures the complete process tree.
    deadlines = {"load": LOAD_LIMIT_S, "warm-up": LOAD_LIMIT_S, "measure": limit_s + GRACE_S}
    return ChildLimits(
        allowed_bytes=_free(meter, memory_limit_bytes),
        phase_s=deadlines,
        total_s=deadline.left_s(),
        total_name=deadline.name,
        host_fence=False,
    )


def _listener(reports: list[int]) -> Listener:
    def listen(message: Message) -> None:
        workers = message.get("workers")
        if isinstance(workers, int):
            reports.append(workers)

    return listen


def _failure_description(ending: Ending, *, blamed: int) -> str:
    """Return how DataLoaders with `blamed` workers end the child that uses them. More workers would do no better.

    Raises:
        UserCodeError, GuardError: no worker is to blame.
        Partial: the time limit ended.
    """
    outcome = classify(ending, lambda value: Infrastructure(detail="no answer"))
    if isinstance(outcome, TimedOut) and outcome.limit_name:
        activity = f"a DataLoader with {count_of(blamed, 'worker')} was timed" if blamed else "the data was fetched"
        raise Partial(
            f"{outcome.limit_name} ended while {activity}",
            known=outcome.detail,
            try_="--workers 0, or a longer --time-limit" if blamed else "a longer --time-limit",
        )
    if isinstance(outcome, UserCodeFailed):
        raise UserCodeError(outcome.error, known=outcome.evidence, try_=outcome.hint)
    if not blamed:
        raise _failure(outcome)
    return described(outcome)


def _failure(outcome: Outcome) -> UserCodeError | GuardError:
    match outcome:
        case TimedOut():
            return UserCodeError(
                f"the data hangs: {UNFINISHED[outcome.phase]} did not end within {outcome.limit_s:.0f} s",
                known=outcome.detail,
                try_="read one sample by hand: task().train_data[0]",
            )
        case OutOfMemory():
            return UserCodeError(
                "reading the data without a model needs more memory than is available",
                known=outcome.detail,
                try_="a smaller --max-batch",
            )
        case _:
            return GuardError("the input pipeline could not be measured", known=described(outcome))


def _answer(ending: Ending) -> FetchAnswer:
    try:
        return FetchAnswer.model_validate(ending.returned)
    except ValidationError as error:
        raise GuardError(
            "the measurement of the input pipeline returned no usable answer",
            known=count_of(error.error_count(), "invalid field"),
        ) from error


def _result(answer: FetchAnswer, start_s: float, clock: Clock) -> PipelineResult:
    race = Race(len(answer.candidates))
    for place, why in answer.failed.items():
        race.fail(place, why)
    for waits in answer.rounds:
        race.record({place: sum(seconds) / len(seconds) for place, seconds in waits.items()})
    timings = [_timing(race, answer, place) for place in range(len(answer.candidates))]
    ranked = sorted(timings, key=lambda timing: -(timing.samples_per_s or 0.0))
    workers = min(timing.config.num_workers for timing in timings)
    if workers and answer.workers.why_none:
        raise UserCodeError(f"{count_of(workers, 'worker')} cannot be used: {answer.workers.why_none}", try_="--workers 0")
    if ranked[0].samples_per_s is None:
        raise UserCodeError("no DataLoader delivered a batch", known=ranked[0].why, try_="--workers 0")
    return PipelineResult(
        created_at=clock.now(),
        batch=answer.batch,
        fetches=answer.fetches,
        timings=tuple(_winner_first(ranked)),
        settled=race.settled,
        tie=TIE - 1,
        wall_s=time.monotonic() - start_s,
        workers=answer.workers,
    )


def _timing(race: Race, answer: FetchAnswer, place: int) -> LoaderTiming:
    runner, candidate = race.runners[place], answer.candidates[place]
    waits = [seconds for round_waits in answer.rounds for seconds in round_waits.get(place, ())]
    left: Left = runner.left or ("" if runner.times else "no-time")
    return LoaderTiming(
        config=LoaderConfig(
            num_workers=candidate.num_workers,
            prefetch_factor=candidate.prefetch_factor,
            persistent_workers=candidate.num_workers > 0,
        ),
        samples_per_s=answer.batch / max(runner.best, 1e-9) if runner.times else None,
        p95_s=None if not waits else max(_p95(waits), 1e-9),
        rounds=len(runner.times),
        left=left,
        why=runner.why,
    )


def _p95(waits: list[float]) -> float:
    return quantiles(waits, n=20, method="inclusive")[-1] if len(waits) > 1 else waits[0]


def _winner_first(ranked: list[LoaderTiming]) -> list[LoaderTiming]:
    """Put the winner first: of the settings as fast as the fastest, the one with the shortest waits; of these the simplest."""
    best = ranked[0].samples_per_s
    if best is None:
        return ranked
    tied = [timing for timing in ranked if timing.samples_per_s is not None and timing.samples_per_s * TIE >= best]
    steadiest = min(timing.p95_s or 0.0 for timing in tied)
    steady = [timing for timing in tied if (timing.p95_s or 0.0) <= steadiest * CLOSE_P95]
    winner = min(steady, key=lambda timing: (timing.config.num_workers, timing.config.prefetch_factor or 0))
    return [winner, *(timing for timing in ranked if timing is not winner)]
