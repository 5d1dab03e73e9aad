"""Reads, inside a child, the most memory that it held: of the host, of its workers, of the accelerator."""

from __future__ import annotations

import multiprocessing
import os

import psutil
import torch

from batchcal.guard.fence import SHARED_MEMORY
from batchcal.guard.meters import ProcessMemory, private_bytes, read_status, reset_peak
from batchcal.measure.children.request import Held


class HostPeak:
    """Most anonymous + shared bytes since `reset`, from VmHWM less the file pages; sampled where there is no VmHWM."""

    def __init__(self) -> None:
        self.resettable = False
        self._sampled = 0

    def reset(self) -> None:
        self.resettable = reset_peak()
        self._sampled = 0

    def read(self) -> int:
        """Bytes. Where the peak could not be reset it holds what came before, too: larger, never smaller."""
        status = read_status()
        if status is None:
            self._sampled = max(self._sampled, psutil.Process().memory_info().rss)
            return self._sampled
        self._sampled = max(self._sampled, status.hard_bytes, status.peak_resident_bytes - status.file_bytes + status.swap_bytes)
        return self._sampled


class AcceleratorPeak:
    """Most reserved on the accelerator since `reset`; nothing on the CPU."""

    def __init__(self, device: torch.device, free_before_bytes: int | None) -> None:
        self._device = device
        self.present = device.type != "cpu"
        self._context_bytes = 0
        if self.present and free_before_bytes is not None:
            torch.accelerator.synchronize(device)
            free, _ = torch.accelerator.get_memory_info(device)
            self._context_bytes = max(0, free_before_bytes - free - torch.accelerator.memory_reserved(device))

    def reset(self) -> None:
        if self.present:
            torch.accelerator.synchronize(self._device)
            torch.accelerator.reset_peak_memory_stats(self._device)

    def reserved_bytes(self) -> int | None:
        """Reserved by the caching allocator at most, plus what the context took. None on the CPU."""
        if not self.present:
            return None
        torch.accelerator.synchronize(self._device)
        return torch.accelerator.max_memory_reserved(self._device) + self._context_bytes

    def allocated_bytes(self) -> int | None:
        return torch.accelerator.max_memory_allocated(self._device) if self.present else None

    def retries(self) -> int:
        """How often the allocator had to flush its cache to go on: a run with retries is borderline and slow."""
        if not self.present:
            return 0
        return int(torch.accelerator.memory_stats(self._device).get("num_alloc_retries", 0))


class WorkersPeak:
    """What DataLoader workers hold beside this process: their own memory, and batches that wait in shared memory."""

    def __init__(self) -> None:
        self._shared_before = _shared_used()
        self._shared = 0

    def look(self) -> None:
        """Once a step: batches on their way are mapped by nobody, so the file system says what they take."""
        status = read_status()
        mapped = 0 if status is None else status.shared_bytes  # this process's own peak has them
        self._shared = max(self._shared, _shared_used() - self._shared_before - mapped)

    def read(self) -> int:
        """Bytes. To be asked while the workers live."""
        self.look()
        workers = [worker.pid for worker in multiprocessing.active_children() if worker.pid is not None]
        return sum(map(private_bytes, workers)) + self._shared


def held(host: HostPeak, accelerator: AcceleratorPeak, *, load_peak: int, begin: int, workers: int) -> Held:
    """All of it together, as it is now.

    Args:
        load_peak, begin: what `host` read after loading and before the measured steps.
        workers: what DataLoader workers held.
    """
    status = read_status() or ProcessMemory()
    return Held(
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


def _shared_used() -> int:
    try:
        seen = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize
