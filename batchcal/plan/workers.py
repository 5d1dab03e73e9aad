"""How many DataLoader workers there is memory for, and how far ahead they may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchcal.calibration.schema import Calibration
from batchcal.core.units import MIB, count_of, format_bytes
from batchcal.workload.in_flight import PREFETCH_FACTOR, SHM_SHARE, batches_in_flight

# Private memory of one worker beside its batches: 11 MiB forked, 144 MiB started by forkserver or spawn (torch 2.13 on CPU,
# smaps_rollup after 20 batches). A forked one grows as reference counts copy the parent's objects, so it is given more.
FORKED_WORKER_BYTES: Final = 48 * MIB
FRESH_WORKER_BYTES: Final = 160 * MIB


@dataclass(frozen=True)
class Workers:
    count: int
    prefetch: int | None
    why: str
    why_prefetch: str


def choose_workers(calibration: Calibration, *, largest_batch: int, room_bytes: int) -> Workers:
    """Workers and prefetch whose batches fit into /dev/shm and whose memory fits into `room_bytes` of the host's budget.

    The number wished for is the one that the calibration was measured with (its memory is then part of the measured peak), else
    what suits the cores. In flight at once: `workers x prefetch` batches and the one in use, all in shared memory, and one more
    per worker while it collates.

    Args:
        largest_batch: samples of the largest batch that a loader will build, for training or evaluation.
        room_bytes: what the budget leaves beside the training process's own peak.
    """
    measured_with = calibration.options.workers
    environment = calibration.environment
    wished = measured_with or environment.optimal_workers
    cores = f"{environment.cpu.cores.value:g} cores"
    if wished == 0:
        return Workers(0, None, f"with {cores} a worker would take time from the training itself", "there are no workers")
    batch_bytes = 0 if calibration.facts is None else int(calibration.facts.batch_bytes_per_sample * largest_batch)
    shm = environment.shared_memory
    # Unknown where there is no /dev/shm (not Linux): torch passes tensors by other means there.
    shm_bytes = None if shm is None else int(shm.free_bytes * SHM_SHARE)
    each = _worker_bytes(calibration)
    for count in range(wished, 0, -1):
        for prefetch in range(PREFETCH_FACTOR, 0, -1):
            in_flight = batches_in_flight(count, prefetch) * batch_bytes
            fits_shm = shm_bytes is None or in_flight <= shm_bytes
            fits_ram = count <= measured_with or count * (each + batch_bytes) + in_flight <= room_bytes
            if fits_shm and fits_ram:
                why = f"measured with {count_of(count, 'worker')}" if count == measured_with else f"suits {cores}"
                if count < wished:
                    why = f"{wished} suit {cores}, memory is there for {count}"
                return Workers(count, prefetch, why, f"{format_bytes(in_flight)} of batches in flight at most")
    if shm is not None and shm_bytes is not None and 2 * batch_bytes > shm_bytes:
        tight = f"{shm.path} has {format_bytes(shm_bytes)} for the two batches of {format_bytes(batch_bytes)} that a worker keeps"
    else:
        needed, left = each + 3 * batch_bytes, max(room_bytes, 0)
        tight = f"one worker needs {format_bytes(needed)} and {format_bytes(left)} are left beside the training"
    return Workers(0, None, tight, "there are no workers")


def _worker_bytes(calibration: Calibration) -> int:
    software = calibration.environment.software
    python = tuple(int(part) for part in software.python.split(".")[:2] if part.isdigit())
    # Linux forks workers up to Python 3.13; from 3.14 on forkserver is its default too.
    if software.os.startswith("Linux") and python < (3, 14):
        return FORKED_WORKER_BYTES
    pickled = None if calibration.facts is None else calibration.facts.dataset_pickle_bytes
    return FRESH_WORKER_BYTES + (pickled or 0)
