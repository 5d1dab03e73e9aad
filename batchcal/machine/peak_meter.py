"""Peak memory of this process since a reset, on the host and on an accelerator. Used by measurement and training."""

from __future__ import annotations

import psutil
import torch

from batchcal.machine.meters import read_status, reset_peak


class HostPeak:
    """Peak of anonymous + shared bytes since `reset`, from VmHWM minus the file pages; sampled if there is no VmHWM."""

    def __init__(self) -> None:
        self.resettable = False
        self._sampled = 0

    def reset(self) -> None:
        self.resettable = reset_peak()
        self._sampled = 0

    def read(self) -> int:
        """Peak, bytes. If it could not be reset, it includes earlier peaks: larger, never smaller."""
        status = read_status()
        if status is None:
            self._sampled = max(self._sampled, psutil.Process().memory_info().rss)
            return self._sampled
        self._sampled = max(self._sampled, status.hard_bytes, status.peak_resident_bytes - status.file_bytes + status.swap_bytes)
        return self._sampled


class AcceleratorPeak:
    """Peak of the reserved memory on the accelerator since `reset`; nothing on the CPU."""

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
        """Peak that the caching allocator reserved, plus the memory of the context. None on the CPU."""
        if not self.present:
            return None
        torch.accelerator.synchronize(self._device)
        return torch.accelerator.max_memory_reserved(self._device) + self._context_bytes

    def allocated_bytes(self) -> int | None:
        return torch.accelerator.max_memory_allocated(self._device) if self.present else None

    def retries(self) -> int:
        """Number of times that the allocator had to flush its cache to continue. A run with retries is borderline and slow."""
        if not self.present:
            return 0
        return int(torch.accelerator.memory_stats(self._device).get("num_alloc_retries", 0))


class PeakMeter:
    """Peak of the training device, per batch and in total. It costs about 80 microseconds per batch on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = HostPeak()
        self._most = 0

    def begin(self) -> bool:
        """Reset the peak to the current memory. False if it cannot be measured."""
        # Otherwise the peak since the last measured batch would be lost.
        self._most = max(self._most, self.end())
        if self._device.type == "cpu":
            self._host.reset()
            return self._host.resettable
        torch.accelerator.reset_peak_memory_stats(self._device)
        return True

    def end(self) -> int:
        """Peak since `begin`, bytes, without file pages."""
        if self._device.type != "cpu":
            return torch.accelerator.max_memory_reserved(self._device)
        return self._host.read()

    def most_bytes(self) -> int:
        """Peak since the first `begin`, bytes, including the time between measured batches."""
        return max(self._most, self.end())
