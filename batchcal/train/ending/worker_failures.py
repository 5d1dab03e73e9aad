"""The error for a DataLoader worker that died. It blames memory only if there is evidence."""

from __future__ import annotations

import multiprocessing
import signal
from typing import Final, NamedTuple

from batchcal.core.errors import BatchcalError, NothingFits, UserCodeError
from batchcal.core.units import count_of, format_bytes
from batchcal.machine.cgroup import memory_meter
from batchcal.machine.meters import private_bytes
from batchcal.runtime.worker_deaths import WorkerDeath

SIGNAL_FOLLOWS_S: Final = 1.0
"""Wait for a signal: if the complete job is signalled, a worker may die before the signal reaches this process."""


WORTH_BLAME: Final = 0.1
"""Share of the memory limit. Workers that hold less are not the cause of a failure."""


class WorkerMemory(NamedTuple):
    """Memory of the running DataLoader workers."""

    workers: int
    held_bytes: int


def memory_of_workers() -> WorkerMemory | None:
    """Memory that the workers hold beside this process. None: there are no workers."""
    pids = [worker.pid for worker in multiprocessing.active_children() if worker.pid is not None]
    return WorkerMemory(len(pids), sum(map(private_bytes, pids))) if pids else None


def blame_workers(error: NothingFits, memory: WorkerMemory | None, limit_bytes: int) -> NothingFits:
    """Return `error`. It names the workers if they hold much of the memory: they copy or keep the data that they read."""
    if memory is None or memory.held_bytes < limit_bytes * WORTH_BLAME:
        return error
    hold = "holds" if memory.workers == 1 else "hold"
    workers = f"{count_of(memory.workers, 'DataLoader worker')} {hold} {format_bytes(memory.held_bytes)}"
    return type(error)(
        error.what,
        known=f"{workers}; {error.known}" if error.known else workers,
        try_=f"fewer --workers, or {error.try_}" if error.try_ else "fewer --workers",
    )


class KernelKills:
    """Check whether the kernel killed a process of our memory group for lack of memory since this object was made."""

    def __init__(self) -> None:
        self._before = _count()

    def happened(self) -> bool:
        return _count() > self._before


def _count() -> int:
    meter = memory_meter()
    try:
        return meter.oom_kills()
    finally:
        meter.close()


def error_of(death: WorkerDeath, *, detail: str, known: str, kernel_killed: bool, near_limit: bool) -> BatchcalError:
    """Return the error to raise for `death`.

    Args:
        detail: the report of torch.
        known: where the training is saved.
        kernel_killed: the kernel killed a process of our group for lack of memory.
        near_limit: this process came near its memory limit.
    """
    if death.from_outside:
        return BatchcalError(f"{death}, which another process sent", known=known, try_="the same command with --resume")
    if death.signal == signal.SIGBUS:
        return NothingFits(
            f"shared memory ran out in a DataLoader worker: {detail}", known=known, try_="fewer --workers, or a larger /dev/shm"
        )
    if kernel_killed or near_limit:
        return NothingFits(
            f"memory ran out in a DataLoader worker: {detail}", known=known, try_="fewer --workers, or a larger --margin"
        )
    if death.signal == signal.SIGKILL:
        return BatchcalError(
            f"{death}, which another process sent",
            known=f"the kernel did not count a kill for lack of memory; {known}",
            try_="the same command with --resume",
        )
    return UserCodeError(f"{death}: {detail}", known=known, try_="--workers 0 shows where it fails")
