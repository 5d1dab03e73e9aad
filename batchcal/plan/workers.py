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
class _Preference:
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
    if calibration.command is not None and "num_workers" not in calibration.command.placeholders:
        return Workers(calibration.command.loader_workers, None, "the command sets it", "the command sets it")
    preference = _preference(calibration, finding, samples_per_s)
    preferred = preference.count
    if preferred == 0:
        return Workers(0, None, preference.why, "there are no workers")
    batch_bytes = 0 if calibration.facts is None else int(calibration.facts.batch_bytes_per_sample * largest_batch)
    shm = environment.shared_memory
    # Unknown without /dev/shm (not Linux): torch passes tensors by other means there.
    shm_bytes = None if shm is None else int(shm.free_bytes * SHM_SHARE)
    bytes_per_worker = worker_bytes(calibration, preference.start)
    why_start = _why_start(calibration, preference.start)
    for count in range(preferred, 0, -1):
        for prefetch in range(preference.prefetch, 0, -1):
            in_flight = batches_in_flight(count, prefetch) * batch_bytes
            fits_shm = shm_bytes is None or in_flight <= shm_bytes
            fits_ram = count <= measured_with or count * (bytes_per_worker + batch_bytes) + in_flight <= room_bytes
            if fits_shm and fits_ram:
                why = preference.why if count == preferred else f"{preference.why}; memory has room for only {count}"
                why_prefetch = f"at most {format_bytes(in_flight)} of batches in flight"
                return Workers(count, prefetch, why, why_prefetch, preference.start, why_start)
    if shm is not None and shm_bytes is not None and 2 * batch_bytes > shm_bytes:
        reason = (
            f"{shm.path} has {format_bytes(shm_bytes)} for batches, and one worker needs two of {format_bytes(batch_bytes)} each"
        )
    else:
        needed, remaining = bytes_per_worker + 3 * batch_bytes, max(room_bytes, 0)
        reason = f"one worker needs {format_bytes(needed)}, and the training leaves {format_bytes(remaining)}"
    return Workers(0, None, reason, "there are no workers")


def _worker_trial(calibration: Calibration) -> LoaderWorkers | None:
    """The last trial of workers: in the calibration, else in the measurement of the input pipeline."""
    if calibration.loader_workers is not None or calibration.pipeline is None:
        return calibration.loader_workers
    return calibration.pipeline.workers


def _why_start(calibration: Calibration, start: str | None) -> str:
    trial = _worker_trial(calibration)
    if start is None:
        return "the platform's default"
    if trial is not None and trial.start == start:
        return trial.why_start
    return "workers failed with the platform's default start method"


def _preference(calibration: Calibration, finding: Finding, samples_per_s: float | None) -> _Preference:
    """Return the best workers, without regard to memory."""
    requested, environment = calibration.options.workers, calibration.environment
    cores = environment.cpu.cores.value
    trial = _worker_trial(calibration)
    start = None if trial is None else trial.start
    if (
        requested is not None
        and requested > 1
        and calibration.facts is not None
        and calibration.facts.worst_case == "first-samples"
    ):
        return _Preference(1, f"a stream needs a single worker: each of {requested} workers would read all samples", start=start)
    if requested is not None:
        return _Preference(
            requested,
            f"measured with {count_of(requested, 'worker')}" if requested else "as requested",
            start=start if requested else None,
        )
    if trial is not None and trial.why_none:
        return _Preference(0, trial.why_none)
    if workers_failed(calibration, finding):
        return _Preference(0, "a rehearsal with workers failed")
    finals = calibration.finals_of(finding)
    if finals is not None:
        winner = finals.winner
        prefetch = winner.prefetch_factor or PREFETCH_FACTOR
        return _Preference(winner.num_workers, _race_result(finals), prefetch, winner.multiprocessing_context)
    promised = _promised(calibration.pipeline, samples_per_s, cores, on_host=finding.device == "cpu")
    if promised is not None:
        return promised if not promised.count else replace(promised, start=start)
    if environment.optimal_workers == 0:
        return _Preference(0, f"with {cores:g} cores, workers would take CPU time from the training")
    if trial is None:
        return _Preference(0, "workers were not tried because time ran out; set a longer --time-limit")
    return _Preference(
        environment.optimal_workers,
        f"{cores:g} cores have room for {count_of(environment.optimal_workers, 'worker')}",
        start=start,
    )


def _race_result(finals: Finals) -> str:
    """Describe the result of the race of workers."""
    winner = finals.winner
    other_finalists = [finalist for finalist in finals.finalists if bool(finalist.num_workers) != bool(winner.num_workers)]
    rate = max((finalist.samples_per_s for finalist in other_finalists if finalist.samples_per_s is not None), default=None)
    if rate is not None and winner.samples_per_s is not None:
        alternative = "without workers" if winner.num_workers else "with workers"
        ratio = winner.samples_per_s / rate
        return f"{ratio - 1:.0%} faster than {alternative}, in a race" if ratio > 1 else f"as fast as {alternative}, in a race"
    bound = max((finalist.bound_samples_per_s for finalist in other_finalists), default=None)
    if winner.num_workers == 0 and bound is not None and winner.samples_per_s is not None:
        return f"workers could gain at most {max(0.0, bound / winner.samples_per_s - 1):.0%}"
    return "the fastest setting that could be run"


def _promised(pipeline: PipelineResult | None, samples_per_s: float | None, cores: float, *, on_host: bool) -> _Preference | None:
    """Return the best workers by conservation of work: they fetch the batch of a step beside it, on the available cores, and not
    faster than measured. None: one of the two speeds was not measured."""
    without_workers = None if pipeline is None else pipeline.of(0)
    if pipeline is None or without_workers is None or without_workers.samples_per_s is None or samples_per_s is None:
        return None
    step_s, fetch_s = 1 / samples_per_s, 1 / without_workers.samples_per_s
    rest_s = max(0.0, step_s - fetch_s)
    least_s = rest_s + (fetch_s / cores if on_host else 0.0)
    expected = [
        (max(least_s, 1 / timing.samples_per_s), timing.config)
        for timing in pipeline.timings
        if timing.config.num_workers and timing.samples_per_s is not None
    ]
    share = f"fetching takes {min(1.0, fetch_s / step_s):.0%} of a step"
    if not expected:
        return _Preference(0, f"{share}, but workers could not be run")
    best_s = min(seconds for seconds, _ in expected)
    gain = step_s / best_s
    if not worth_it(gain, cores):
        return _Preference(0, f"{share}: workers would gain at most {max(0.0, gain - 1):.0%}")
    # The fewest workers that are within a few percent of the best.
    config = min(
        (config for seconds, config in expected if seconds <= best_s * (1 + pipeline.tie)),
        key=lambda config: (config.num_workers, config.prefetch_factor or 0),
    )
    return _Preference(
        config.num_workers, f"{share}: workers gain up to {gain - 1:.0%}", config.prefetch_factor or PREFETCH_FACTOR
    )


def worker_bytes(calibration: Calibration, start: str | None = None) -> int:
    """Private memory of one worker beside its batches, bytes. `start` is the start method; None: the platform's default."""
    trial = _worker_trial(calibration)
    measured = 0
    if trial is not None and trial.start == start:
        kept_bytes = 0 if calibration.facts is None else calibration.facts.kept_bytes
        measured = trial.private_bytes + max(trial.growth_bytes, kept_bytes)
    return max(measured, _usual_worker_bytes(calibration, start))


def _usual_worker_bytes(calibration: Calibration, start: str | None) -> int:
    software = calibration.environment.software
    python = tuple(int(part) for part in software.python.split(".")[:2] if part.isdigit())
    # Linux forks workers up to Python 3.13; from 3.14 on forkserver is its default too.
    if start == "fork" or (start is None and software.os.startswith("Linux") and python < (3, 14)):
        return FORKED_WORKER_BYTES
    pickled = None if calibration.facts is None else calibration.facts.dataset_pickle_bytes
    return FRESH_WORKER_BYTES + (pickled or 0)
