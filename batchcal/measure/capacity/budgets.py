"""Budgets of the devices while a calibration measures: a kill, unseen samples or growing memory makes them smaller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from batchcal.calibration.schema import Budget, usable_bytes
from batchcal.core.units import format_bytes
from batchcal.guard.outcome import OutOfMemory
from batchcal.measure.capacity.attempts import Attempts
from batchcal.measure.children.probe import Examination
from batchcal.measure.workers.requested import reserve

MARGIN_DOUBLINGS: Final = 2
"""Maximum number of doublings of a margin. 15 % of the limit becomes 60 %: if that does not help, the margin is not the cause."""


class FenceFailed(Exception):
    """The kernel's OOM killer killed a probe. The search starts again within a smaller budget."""


@dataclass
class DeviceBudgets:
    """Budget by device. Each change adds a note."""

    by_device: dict[str, Budget]
    attempts: Attempts
    heap_growth: dict[tuple[str, str], float] = field(default_factory=dict)
    """Heap growth by device and policy, see `Finding.heap_growth`."""
    _doubled: dict[str, int] = field(default_factory=dict)
    """Number of doublings of the margin, by device."""
    _widened: set[str] = field(default_factory=set)
    """Devices with a margin that covers samples that were not examined."""

    def bytes_of(self, device: str) -> int:
        """Budget of a device, bytes."""
        return self.by_device[device].budget_bytes

    def usable_bytes(self, device: str, allocator: str, examination: Examination) -> int:
        """Memory that a probe may hold, bytes."""
        growth = self.heap_growth.get((device, allocator), 1.0)
        return usable_bytes(self.bytes_of(device), examination.base_bytes, growth)

    def check_fence(self, device: str) -> None:
        """Raise FenceFailed if the number of probes that the kernel killed exceeds the number of doublings of the margin."""
        kills = sum(
            measured.device == device and isinstance(measured.outcome, OutOfMemory) and measured.outcome.source == "kernel"
            for measured in self.attempts.measurements
        )
        doubled = self._doubled.get(device, 0)
        if kills > doubled and doubled < MARGIN_DOUBLINGS:
            self._doubled[device] = doubled + 1
            raise FenceFailed

    def double_margin(self, device: str) -> None:
        """Double the margin: the kernel's OOM killer fired before the fence, so there is less memory than it seems."""
        margin_bytes = self.by_device[device].margin_bytes
        self._add_to_margin(device, margin_bytes)
        self.attempts.note(
            f"the margin on {device} is doubled to {format_bytes(2 * margin_bytes)}, because the kernel's OOM killer fired"
        )

    def widen_margin(self, device: str, examination: Examination) -> None:
        """Leave room for samples that are larger than the largest known sample."""
        factor = examination.facts.unseen_factor
        if factor <= 1 or device in self._widened:
            return
        self._widened.add(device)
        budget_bytes = self.bytes_of(device)
        extra = int(max(0, budget_bytes - examination.device_base_bytes) * (1 - 1 / factor))
        self._add_to_margin(device, extra)
        self.attempts.note(
            f"the margin on {device} is {format_bytes(extra)} larger, because the largest sample may be {factor:.2g} times as "
            "large as the largest sample that was examined; Task(size_of=...) makes this exact"
        )

    def reserve(self, grown_bytes: int, examination: Examination, why: str) -> None:
        """Leave host memory free for what grows over an epoch, unless some is reserved already."""
        budget = self.by_device.get("cpu")
        if budget is not None and grown_bytes and not budget.reserved_bytes:
            self.by_device["cpu"], grows = reserve(budget, grown_bytes, base_bytes=examination.base_bytes)
            self.attempts.note(f"{why}: {grows}")

    def _add_to_margin(self, device: str, extra_bytes: int) -> None:
        budget = self.by_device[device]
        changes = {
            "margin_bytes": budget.margin_bytes + extra_bytes,
            "budget_bytes": max(0, budget.budget_bytes - extra_bytes),
        }
        self.by_device[device] = budget.model_copy(update=changes)
