"""What a process holds, read from /proc of this very machine."""

from __future__ import annotations

import mmap
import os
import threading
import time

import pytest

from batchcal.core.units import MIB
from batchcal.machine.meters import (
    ProcessMemory,
    ResidentSampler,
    descendants,
    private_bytes,
    read_status,
    reset_peak,
    thread_count,
)

NOBODY = 2**22 + 7


class Block:
    """Touched memory of a process alone, or shared memory."""

    def __init__(self, mib: int, *, shared: bool = False) -> None:
        self._map = mmap.mmap(-1, mib * MIB, flags=(mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS)
        for offset in range(0, len(self._map), 4096):
            self._map[offset] = 1

    def close(self) -> None:
        self._map.close()


def status() -> ProcessMemory:
    found = read_status()
    assert found is not None
    return found


@pytest.mark.parametrize(("shared", "field"), [(False, "anonymous_bytes"), (True, "shared_bytes")])
def test_private_and_shared_memory_are_reported_separately(shared: bool, field: str) -> None:
    before = status()
    block = Block(64, shared=shared)
    now = status()
    block.close()
    grown: int = getattr(now, field) - getattr(before, field)
    assert 60 * MIB <= grown <= 68 * MIB
    assert now.hard_bytes - before.hard_bytes >= 60 * MIB
    if not shared:
        assert now.data_bytes - before.data_bytes >= 60 * MIB


def test_the_peak_stays_until_it_is_reset() -> None:
    block = Block(96)
    high = status()
    block.close()
    assert status().peak_resident_bytes >= high.anonymous_bytes + high.file_bytes - MIB
    assert reset_peak()
    low = status()
    assert low.peak_resident_bytes < high.peak_resident_bytes - 60 * MIB


def test_hard_memory_is_all_memory_except_file_pages() -> None:
    memory = ProcessMemory(anonymous_bytes=1, shared_bytes=2, swap_bytes=4, file_bytes=8)
    assert memory.hard_bytes == 7


def test_a_process_that_does_not_exist_has_no_memory() -> None:
    assert read_status(NOBODY) is None
    assert not reset_peak(NOBODY)
    assert private_bytes(NOBODY) == 0
    assert descendants(NOBODY) == ()
    assert thread_count(NOBODY) == 1
    with pytest.raises(OSError):
        ResidentSampler(NOBODY)


def test_threads_are_counted() -> None:
    before = thread_count()
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    assert thread_count() == before + 1 == status().threads
    ended.set()
    thread.join()


@pytest.mark.child
def test_a_sampler_measures_a_process_and_returns_0_after_it_ends() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        block = Block(64)
        os.write(write, b"x")
        time.sleep(60)
        block.close()
        os._exit(0)
    sampler = ResidentSampler(child)
    try:
        os.read(read, 1)
        assert sampler.anonymous_bytes() >= 60 * MIB
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    assert sampler.anonymous_bytes() == 0
    sampler.close()


@pytest.mark.child
def test_a_zombie_process_has_no_memory_status() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert read_status(child) is None
    os.waitpid(child, 0)


@pytest.mark.child
def test_memory_shared_with_the_parent_is_not_private_to_a_forked_worker() -> None:
    common = Block(96)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        own = Block(32)
        os.write(write, b"x")
        time.sleep(60)
        own.close()
        os._exit(0)
    try:
        os.read(read, 1)
        assert child in descendants(os.getpid())
        # Without the 96 MiB; what the parent writes to meanwhile becomes the child's own.
        assert 30 * MIB <= private_bytes(child) < 90 * MIB
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
        common.close()


@pytest.mark.child
def test_descendants_include_grandchildren() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(60)
            os._exit(0)
        os.write(write, str(grandchild).encode())
        time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(read, 32))
    try:
        mine = [pid for pid in descendants(os.getpid()) if pid in (child, grandchild)]
        assert mine == [child, grandchild]
    finally:
        os.kill(grandchild, 9)
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
