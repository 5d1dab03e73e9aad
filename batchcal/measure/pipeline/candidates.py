"""DataLoaders that are worth a trial on this machine, and those that arithmetic rules out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from batchcal.core.units import count_of, format_bytes
from batchcal.core.values import Frozen
from batchcal.detect.environment import Environment
from batchcal.workload.data.in_flight import SHM_SHARE, batches_in_flight

PREFETCH: Final = (2, 4, 1, 8)
"""torch's own default comes first."""
MOST_CANDIDATES: Final = 8
DESCRIPTORS_RESERVED: Final = 64
"""Open files of a process beside the tensors in flight. Each of those tensors takes one more."""


class LoaderCandidate(Frozen):
    """Settings of one DataLoader."""

    num_workers: int
    prefetch_factor: int | None


class CandidateLimits(Frozen):
    """Resources of the machine that workers may use."""

    cores: float
    shm_bytes: int | None
    """Free space in /dev/shm. None: batches are passed by other means."""
    memory_bytes: int
    worker_bytes: int
    """Private memory of one worker, without its batches."""
    open_files: int
    processes: int | None
    """Number of processes that may still be started. None: no limit."""


def limits_of(environment: Environment, *, memory_bytes: int, worker_bytes: int) -> CandidateLimits:
    """Return the resources that workers may use here, with `memory_bytes` of memory."""
    shm = environment.shared_memory
    return CandidateLimits(
        cores=environment.cpu.cores.value,
        shm_bytes=None if shm is None else shm.free_bytes,
        memory_bytes=max(0, memory_bytes),
        worker_bytes=worker_bytes,
        open_files=environment.open_files.value,
        processes=None if environment.pids is None else environment.pids.value,
    )


def candidates(cores: float, *, pinned_workers: int | None = None, stream: bool = False) -> tuple[LoaderCandidate, ...]:
    """Return at most MOST_CANDIDATES, the simplest first: no worker, then few; torch's default prefetch before others.

    Args:
        pinned_workers: number that the user requested. No other number is tried then.
        stream: the data can only be read in sequence, and two workers would each read all of it.
    """
    options = list(_all(_most_workers(cores), stream=stream))
    if pinned_workers is not None:
        options = [option for option in options if option.num_workers == pinned_workers] or [
            LoaderCandidate(num_workers=pinned_workers, prefetch_factor=prefetch) for prefetch in PREFETCH
        ]
    selected = options[:MOST_CANDIDATES]
    return tuple(sorted(selected, key=lambda option: (option.num_workers, PREFETCH.index(option.prefetch_factor or PREFETCH[0]))))


def forbidden(candidate: LoaderCandidate, room: CandidateLimits, *, batch_bytes: float, tensors: int) -> str:
    """Return the reason why `candidate` cannot work here. Empty: it may.

    Args:
        tensors: number of tensors in a batch. Each takes a descriptor while it is in flight.
    """
    workers = candidate.num_workers
    if workers == 0:
        return ""
    in_flight = batches_in_flight(workers, candidate.prefetch_factor or 1)
    shared = in_flight * batch_bytes
    if room.shm_bytes is not None and shared > room.shm_bytes * SHM_SHARE:
        usable = format_bytes(room.shm_bytes * SHM_SHARE)
        return f"prefetched batches need {format_bytes(shared)} of /dev/shm; {usable} may be used"
    private = workers * (room.worker_bytes + batch_bytes)
    if private + shared > room.memory_bytes:
        need = "needs" if workers == 1 else "need"
        return (
            f"{count_of(workers, 'worker')} {need} {format_bytes(private + shared)}; {format_bytes(room.memory_bytes)} are free"
        )
    if in_flight * tensors + DESCRIPTORS_RESERVED > room.open_files:
        files = in_flight * tensors + DESCRIPTORS_RESERVED
        return f"prefetched batches need {files} open files; the limit is {room.open_files}"
    if room.processes is not None and workers > room.processes:
        return f"too many processes: only {room.processes} more can start"
    return ""


def _most_workers(cores: float) -> int:
    """Return half of the cores. On two cores or one, return all of them: data may be heavier than the model."""
    return max(1, math.ceil(cores)) if cores <= 2 else max(2, math.floor(cores / 2))


def _all(most_workers: int, *, stream: bool) -> Iterator[LoaderCandidate]:
    """Yield the candidates, the most promising first."""
    yield LoaderCandidate(num_workers=0, prefetch_factor=None)
    counts = [1] if stream else _ladder(most_workers)
    for prefetch in PREFETCH:
        for workers in counts:
            yield LoaderCandidate(num_workers=workers, prefetch_factor=prefetch)


def _ladder(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most`."""
    steps = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*steps, most]
