"""Memory of a child and its DataLoader workers, for its answer."""

from __future__ import annotations

import multiprocessing

from batchcal.machine.meters import ProcessMemory, private_bytes, read_status
from batchcal.machine.peak_meter import AcceleratorPeak, HostPeak
from batchcal.machine.tree_meter import shared_memory_bytes
from batchcal.measure.children.child_memory import ChildMemory


class WorkersPeak:
    """Memory of DataLoader workers beside this process: their own memory, and batches that wait in shared memory."""

    def __init__(self) -> None:
        self._shared_before = shared_memory_bytes() or 0
        self._shared = 0

    def update(self) -> None:
        """Update the peak. Call it once per step. No process maps batches in flight: their size is read from the file system."""
        status = read_status()
        mapped = 0 if status is None else status.shared_bytes  # they are in this process's own peak
        self._shared = max(self._shared, (shared_memory_bytes() or 0) - self._shared_before - mapped)

    def read(self) -> int:
        """Memory of the workers, bytes. Call it while they run."""
        self.update()
        workers = [worker.pid for worker in multiprocessing.active_children() if worker.pid is not None]
        return sum(map(private_bytes, workers)) + self._shared


def child_memory(host: HostPeak, accelerator: AcceleratorPeak, *, load_peak: int, begin: int, workers: int) -> ChildMemory:
    """Return all values together, as they are now.

    Args:
        load_peak, begin: values that `host` read after loading and before the measured steps.
        workers: memory of DataLoader workers.
    """
    status = read_status() or ProcessMemory()
    return ChildMemory(
        anonymous_bytes=status.anonymous_bytes,
        shared_bytes=status.shared_bytes,
        file_bytes=status.file_bytes,
        workers_bytes=workers,
        load_peak_bytes=load_peak,
        begin_bytes=begin,
        step_peak_bytes=host.read(),
        accelerator_bytes=accelerator.reserved_bytes(),
        accelerator_allocated_bytes=accelerator.allocated_bytes(),
        accelerator_retries=accelerator.retries(),
    )
