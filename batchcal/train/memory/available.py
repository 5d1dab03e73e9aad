"""Memory available to this process now: the limit, use by other processes, and its own use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Protocol

import torch

from batchcal.core.clock import Clock
from batchcal.core.values import Frozen
from batchcal.machine.cgroup import MachineMemory, MemoryGroup, memory_meter
from batchcal.machine.meters import ResidentSampler, descendants, private_bytes

LOOK_AGAIN_S: Final = 1.0
"""Seconds between two searches, about 1 ms each, for a lower limit further up, which is not read every time."""

WORKERS_S: Final = 5.0
"""Seconds between two readings of the workers. One takes about 30 ms per GiB of theirs: 0.4 % of the time for 300 MiB each."""


class AvailableMemory(Frozen):
    """One reading, in bytes."""

    limit_bytes: int
    used_bytes: int
    """Use by all processes under the limit, without memory that can be dropped at any time."""
    own_bytes: int
    """Part of it that this process holds, free blocks of its allocator included."""

    @property
    def others_bytes(self) -> int:
        return max(0, self.used_bytes - self.own_bytes)


class Meter(Protocol):
    """Meter of the memory that a training on one device must fit into."""

    def read(self) -> AvailableMemory: ...

    def limit_bytes(self) -> int:
        """Return only the limit. Takes a tenth of the time of a full reading."""
        ...

    def own_bytes(self) -> int:
        """Return only the memory of this process."""
        ...

    def close(self) -> None: ...


class HostMeter:
    """Memory of the host: the binding control group with its current limit, or the machine.

    A reading takes about 15 microseconds alone, and 200-500 after a pass, whose data fills the caches.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._own = ResidentSampler(os.getpid())
        self._group: MemoryGroup | MachineMemory = memory_meter()
        self._looked_at = clock.monotonic()

    def read(self) -> AvailableMemory:
        now = self._clock.monotonic()
        if now - self._looked_at > LOOK_AGAIN_S:
            self._looked_at = now
            self._group.close()
            self._group = memory_meter()
        own = self._own.anonymous_bytes()
        return AvailableMemory(limit_bytes=self._group.limit_now(), used_bytes=max(self._group.hard_bytes(), own), own_bytes=own)

    def limit_bytes(self) -> int:
        return self._group.limit_now()

    def own_bytes(self) -> int:
        return self._own.anonymous_bytes()

    def close(self) -> None:
        self._group.close()
        self._own.close()


class AcceleratorMeter:
    """Memory of a CUDA device: what the driver reports as free, and what torch's caching allocator has reserved of the rest."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        _, self._total = torch.cuda.mem_get_info(device)

    def read(self) -> AvailableMemory:
        free, total = torch.cuda.mem_get_info(self._device)
        return AvailableMemory(limit_bytes=total, used_bytes=total - free, own_bytes=self.own_bytes())

    def limit_bytes(self) -> int:
        return self._total

    def own_bytes(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def close(self) -> None:
        return None


class WorkersMemory:
    """Private memory of the descendants of this process, mainly DataLoader workers. Read every few seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bytes = 0
        self._read_at = -WORKERS_S

    def bytes(self) -> int:
        """Return the anonymous memory that they share with no other process, from the latest reading."""
        now = self._clock.monotonic()
        if now - self._read_at >= WORKERS_S:
            self._read_at = now
            self._bytes = sum(map(private_bytes, descendants(os.getpid())))
        return self._bytes


class ShareMeter:
    """Memory of the host of which this process and its descendants may hold a share: the share or the free memory, the lesser."""

    def __init__(self, host: Meter, share_bytes: int, workers_bytes: Callable[[], int] = lambda: 0) -> None:
        """`workers_bytes`: bytes that the descendants of this process hold."""
        self._host, self._share, self._workers_bytes = host, share_bytes, workers_bytes
        self._real = self._reported_limit = share_bytes
        """Limit of the latest reading, and the limit returned in its place."""

    def read(self) -> AvailableMemory:
        room, workers_bytes = self._host.read(), self._workers_bytes()
        if room.limit_bytes - room.others_bytes > self._share - workers_bytes:
            reported = AvailableMemory(
                limit_bytes=self._share, used_bytes=room.own_bytes + workers_bytes, own_bytes=room.own_bytes
            )
        else:
            reported = room
        self._real, self._reported_limit = room.limit_bytes, reported.limit_bytes
        return reported

    def limit_bytes(self) -> int:
        real = self._host.limit_bytes()
        return self._reported_limit if real == self._real else real

    def own_bytes(self) -> int:
        return self._host.own_bytes()

    def close(self) -> None:
        self._host.close()


def meter_of(device: torch.device, clock: Clock, share_bytes: int | None = None) -> Meter:
    """Return the meter for training on `device`, with `share_bytes` of the host's memory. For accelerators that do not report
    free memory, only the host's memory counts."""
    if device.type == "cuda":
        return AcceleratorMeter(device)
    return HostMeter(clock) if share_bytes is None else ShareMeter(HostMeter(clock), share_bytes, WorkersMemory(clock).bytes)
