"""The most memory that this process held since a moment: of the host, of an accelerator. Measuring and training share it."""

from __future__ import annotations

import psutil
import torch

from batchcal.machine.meters import read_status, reset_peak


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


class PeakMeter:
    """Peak of the device that is trained on, batch by batch and in all; some 80 microseconds a batch on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = HostPeak()
        self._most = 0

    def begin(self) -> bool:
        """Lets the peak start again from what is held now. False where it cannot be measured."""
        # What was held since the last batch that was measured would be lost.
        self._most = max(self._most, self.end())
        if self._device.type == "cpu":
            self._host.reset()
            return self._host.resettable
        torch.accelerator.reset_peak_memory_stats(self._device)
        return True

    def end(self) -> int:
        """Bytes at the peak since `begin`, file pages left out."""
        if self._device.type != "cpu":
            return torch.accelerator.max_memory_reserved(self._device)
        return self._host.read()

    def most_bytes(self) -> int:
        """Bytes at the peak since the first `begin`, also between measured batches."""
        return max(self._most, self.end())
