"""The most memory that this process held: during a batch, and in all."""

from __future__ import annotations

import psutil
import torch

from batchcal.guard.meters import read_status, reset_peak


class PeakMeter:
    """Of the device that is trained on. On the host from the kernel's high-water mark; some 80 microseconds a batch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._most = 0

    def begin(self) -> bool:
        """The peak starts again from what is held now. False where it cannot be measured."""
        # What was held since the last batch that was measured would be lost.
        self._most = max(self._most, self.end())
        if self._device.type == "cpu":
            return reset_peak()
        torch.accelerator.reset_peak_memory_stats(self._device)
        return True

    def end(self) -> int:
        """Bytes at the peak since `begin`, file pages left out."""
        if self._device.type != "cpu":
            return torch.accelerator.max_memory_reserved(self._device)
        status = read_status()
        if status is None:
            return int(psutil.Process().memory_info().rss)
        return max(status.hard_bytes, status.peak_resident_bytes - status.file_bytes + status.swap_bytes)

    def most_bytes(self) -> int:
        """Since the first `begin`, whatever was measured in between."""
        return max(self._most, self.end())
