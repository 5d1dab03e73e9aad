"""Number of DataLoader workers that fit into memory, and the batches that they may read ahead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from batchcal.calibration.records.pipeline import PipelineResult
from batchcal.calibration.records.rehearsal import Finals
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.calibration.schema import Calibration, Finding
from batchcal.core.units import MIB, count_of, format_bytes
from batchcal.plan.rehearsals.rehearsed import workers_failed
from batchcal.workload.data.in_flight import PREFETCH_FACTOR, SHM_SHARE, batches_in_flight

# Private memory of one worker beside its batches: 11 MiB forked, 144 MiB started by forkserver or spawn (torch 2.13 on CPU,
# smaps_rollup after 20 batches). A forked one grows as reference counts copy the parent's objects, so its value is higher.
FORKED_WORKER_BYTES: Final = 48 * MIB
FRESH_WORKER_BYTES: Final = 160 * MIB
HEAVY: Final = 1.15
"""Gain that workers must promise on two cores or fewer. They use the step's own cores there, and the promise is the best case."""
WORTH: Final = 1.05
"""Gain that workers must promise on more cores."""


@dataclass(frozen=True)
class Workers:
    count: int
    prefetch: int | None
    why: str
    why_prefetch: str
    start: str | None = None
    """Start method of the workers. None: the platform's default."""
    why_start: str = "the platform's default"


@dataclass(frozen=True)
class _Wish:
    count: int
    why: str
    prefetch: int = PREFETCH_FACTOR
    start: str | None = None


def worth_it(gain: float, cores: float) -> bool:
    """True if the promised gain is large enough to use workers."""
    return gain >= (HEAVY if cores <= 2 else WORTH)


def choose_workers(
    calibration: Calibration, finding: Finding, *, largest_batch: int, room_bytes: int, samples_per_s: float | None
) -> Workers:
    """Return workers and prefetch whose batches fit into /dev/shm and whose memory fits into `room_bytes` of the host's budget.

    The preferred number is the requested one (its memory is then part of the measured peak), else the winner of the race, else
    the best one by the measurement of the input pipeline, else one that suits the cores. Batches in flight at once: `workers x
    prefetch` and the one in use, all in shared memory, and one more per worker while it collates.

    Args:
        largest_batch: samples of the largest batch that a loader builds, for training or evaluation.
        room_bytes: bytes that the budget leaves beside the peak of the training process itself.
        samples_per_s: speed of a training that fetches its batches itself, if that was timed.
    """
    measured_with = calibration.options.workers or 0
    environment = calibration.environment
    wish = _wish(calibration, finding, samples_per_s)
    wished = wish.count
    if wished == 0:
        return Workers(0, None, wish.why, "there are no workers")
    batch_bytes = 0 if calibration.facts is None else int(calibration.facts.batch_bytes_per_sample * largest_batch)
    shm = environment.shared_memory
    # Unknown without /dev/shm (not Linux): torch passes tensors by other means there.
    shm_bytes = None if shm is None else int(shm.free_bytes * SHM_SHARE)
    each = worker_bytes(calibration, wish.start)
    why_start = _why_start(calibration, wish.start)
    for count in range(wished, 0, -1):
        for prefetch in range(wish.prefetch, 0, -1):
            in_flight = batches_in_flight(count, prefetch) * batch_bytes
            fits_shm = shm_bytes is None or in_flight <= shm_bytes
            fits_ram = count <= measured_with or count * (each + batch_bytes) + in_flight <= room_bytes
            if fits_shm and fits_ram:
                why = wish.why if count == wished else f"{wish.why}; memory is there for {count}"
                why_prefetch = f"{format_bytes(in_flight)} of batches in flight at most"
                return Workers(count, prefetch, why, why_prefetch, wish.start, why_start)
    if shm is not None and shm_bytes is not None and 2 * batch_bytes > shm_bytes:
        tight = f"{shm.path} has {format_bytes(shm_bytes)} for the two batches of {format_bytes(batch_bytes)} that a worker keeps"
    else:
        needed, left = each + 3 * batch_bytes, max(room_bytes, 0)
        tight = f"one worker needs {format_bytes(needed)} and {format_bytes(left)} are left beside the training"
    return Workers(0, None, tight, "there are no workers")


def _tried(calibration: Calibration) -> LoaderWorkers | None:
    """The last trial of workers: in the calibration, else in the measurement of the input pipeline."""
    if calibration.loader_workers is not None or calibration.pipeline is None:
        return calibration.loader_workers
    return calibration.pipeline.workers


def _why_start(calibration: Calibration, start: str | None) -> str:
    tried = _tried(calibration)
    if start is None:
        return "the platform's default"
    if tried is not None and tried.start == start:
        return tried.why_start
    return "workers that were started in the platform's way failed"


def _wish(calibration: Calibration, finding: Finding, samples_per_s: float | None) -> _Wish:
    """Return the best workers, without regard to memory."""
    asked, environment = calibration.options.workers, calibration.environment
    cores = environment.cpu.cores.value
    tried = _tried(calibration)
    start = None if tried is None else tried.start
    if asked is not None and asked > 1 and calibration.facts is not None and calibration.facts.worst_case == "first-samples":
        return _Wish(1, f"a stream is read by one worker: {asked} would each read all of it", start=start)
    if asked is not None:
        return _Wish(asked, f"measured with {count_of(asked, 'worker')}" if asked else "as asked", start=start if asked else None)
    if tried is not None and tried.why_none:
        return _Wish(0, tried.why_none)
    if workers_failed(calibration, finding):
        return _Wish(0, "a rehearsal with workers failed")
    finals = calibration.finals_of(finding)
    if finals is not None:
        winner = finals.winner
        prefetch = winner.prefetch_factor or PREFETCH_FACTOR
        return _Wish(winner.num_workers, _raced(finals), prefetch, winner.multiprocessing_context)
    promised = _promised(calibration.pipeline, samples_per_s, cores, on_host=finding.device == "cpu")
    if promised is not None:
        return promised if not promised.count else replace(promised, start=start)
    if environment.optimal_workers == 0:
        return _Wish(0, f"with {cores:g} cores a worker would take time from the training itself")
    if tried is None:
        return _Wish(0, "workers were not tried: there was no time; give a longer --time-limit")
    return _Wish(environment.optimal_workers, f"{environment.optimal_workers} suit {cores:g} cores", start=start)


def _raced(finals: Finals) -> str:
    """Describe the result of the race of workers."""
    winner = finals.winner
    others = [one for one in finals.finalists if bool(one.num_workers) != bool(winner.num_workers)]
    timed = max((one.samples_per_s for one in others if one.samples_per_s is not None), default=None)
    if timed is not None and winner.samples_per_s is not None:
        than = "none" if winner.num_workers else "with workers"
        ratio = winner.samples_per_s / timed
        return f"{ratio - 1:.0%} faster than {than}, raced" if ratio > 1 else f"none is as fast as {than}, raced"
    bound = max((one.bound_samples_per_s for one in others), default=None)
    if winner.num_workers == 0 and bound is not None and winner.samples_per_s is not None:
        return f"workers could gain {max(0.0, bound / winner.samples_per_s - 1):.0%} at most"
    return "the fastest of those that could be run"


def _promised(pipeline: PipelineResult | None, samples_per_s: float | None, cores: float, *, on_host: bool) -> _Wish | None:
    """Return the best workers by conservation of work: they fetch the batch of a step beside it, on the available cores, and not
    faster than measured. None: one of the two speeds was not measured."""
    alone = None if pipeline is None else pipeline.of(0)
    if pipeline is None or alone is None or alone.samples_per_s is None or samples_per_s is None:
        return None
    step_s, fetch_s = 1 / samples_per_s, 1 / alone.samples_per_s
    rest_s = max(0.0, step_s - fetch_s)
    least_s = rest_s + (fetch_s / cores if on_host else 0.0)
    expected = [
        (max(least_s, 1 / timing.samples_per_s), timing.config)
        for timing in pipeline.timings
        if timing.config.num_workers and timing.samples_per_s is not None
    ]
    share = f"fetching takes {min(1.0, fetch_s / step_s):.0%} of a step"
    if not expected:
        return _Wish(0, f"{share}, and no worker could be tried")
    best_s = min(seconds for seconds, _ in expected)
    gain = step_s / best_s
    if not worth_it(gain, cores):
        return _Wish(0, f"{share}: workers would gain {max(0.0, gain - 1):.0%} at most")
    # The fewest workers that are within a few percent of the best.
    config = min(
        (config for seconds, config in expected if seconds <= best_s * (1 + pipeline.tie)),
        key=lambda config: (config.num_workers, config.prefetch_factor or 0),
    )
    return _Wish(config.num_workers, f"{share}: workers gain up to {gain - 1:.0%}", config.prefetch_factor or PREFETCH_FACTOR)


def worker_bytes(calibration: Calibration, start: str | None = None) -> int:
    """Private memory of one worker beside its batches, bytes. `start` is the start method; None: the platform's default."""
    tried = _tried(calibration)
    measured = 0
    if tried is not None and tried.start == start:
        kept = 0 if calibration.facts is None else calibration.facts.kept_bytes
        measured = tried.private_bytes + max(tried.growth_bytes, kept)
    return max(measured, _usual_worker_bytes(calibration, start))


def _usual_worker_bytes(calibration: Calibration, start: str | None) -> int:
    software = calibration.environment.software
    python = tuple(int(part) for part in software.python.split(".")[:2] if part.isdigit())
    # Linux forks workers up to Python 3.13; from 3.14 on forkserver is its default too.
    if start == "fork" or (start is None and software.os.startswith("Linux") and python < (3, 14)):
        return FORKED_WORKER_BYTES
    pickled = None if calibration.facts is None else calibration.facts.dataset_pickle_bytes
    return FRESH_WORKER_BYTES + (pickled or 0)
