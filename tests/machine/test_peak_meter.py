"""The most that this very process held, of host memory."""

from __future__ import annotations

import mmap

import pytest
import torch

from batchcal.core.units import MIB
from batchcal.machine import peak_meter
from batchcal.machine.peak_meter import AcceleratorPeak, HostPeak


def touch(mib: int) -> None:
    """Holds so much for a moment, past malloc."""
    with mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for offset in range(0, len(block), 4096):
            block[offset] = 1


def test_the_host_peak_includes_memory_that_was_freed() -> None:
    host = HostPeak()
    host.reset()
    assert host.resettable
    before = host.read()
    touch(128)
    assert host.read() - before >= 120 * MIB
    touch(16)
    assert host.read() - before <= 140 * MIB


def test_the_host_peak_excludes_memory_before_the_reset() -> None:
    host = HostPeak()
    touch(256)
    high = host.read()
    host.reset()
    assert host.read() < high - 100 * MIB


def test_the_host_peak_is_sampled_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_meter, "read_status", lambda: None)
    monkeypatch.setattr(peak_meter, "reset_peak", lambda: False)
    host = HostPeak()
    host.reset()
    assert not host.resettable
    assert host.read() > 10 * MIB


def test_the_cpu_is_not_an_accelerator() -> None:
    nothing = AcceleratorPeak(torch.device("cpu"), None)
    nothing.reset()
    assert not nothing.present
    assert nothing.reserved_bytes() is None
    assert nothing.allocated_bytes() is None
    assert nothing.retries() == 0


class Card:
    """What torch.accelerator says of a card, in MiB: 1000 of them, others' 200, a context of 100, and a cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = 50
        self.peak = 50
        self.free = 650
        self.retries = 0
        for name, answer in {
            "synchronize": lambda device: None,
            "get_memory_info": lambda device: (self.free * MIB, 1000 * MIB),
            "memory_reserved": lambda device: self.reserved * MIB,
            "reset_peak_memory_stats": self.reset,
            "max_memory_reserved": lambda device: self.peak * MIB,
            "max_memory_allocated": lambda device: self.peak * MIB // 2,
            "memory_stats": lambda device: {"num_alloc_retries": self.retries} if self.retries else {},
        }.items():
            monkeypatch.setattr(torch.accelerator, name, answer)

    def reset(self, device: torch.device) -> None:
        self.peak = self.reserved


def test_the_accelerator_peak_includes_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    measured = AcceleratorPeak(torch.device("cuda", 0), 800 * MIB)  # free before: 150 are gone, 50 of them the cache's
    card.peak = 400
    assert measured.reserved_bytes() == 500 * MIB
    assert measured.allocated_bytes() == 200 * MIB
    measured.reset()
    assert measured.reserved_bytes() == 150 * MIB
    assert measured.retries() == 0
    card.retries = 3
    assert measured.retries() == 3


def test_the_accelerator_peak_omits_the_context_without_a_free_memory_value(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    assert AcceleratorPeak(torch.device("cuda", 0), None).reserved_bytes() == 50 * MIB


def test_memory_freed_by_a_neighbour_does_not_make_the_context_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    assert AcceleratorPeak(torch.device("cuda", 0), 100 * MIB).reserved_bytes() == 50 * MIB
