"""The watchdog: when it says kill, and what it remembers."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.guard.limits.watchdog import ROLL_CALL_S, STILL_S, Watchdog, trip_distance

NOBODY = 2**22 + 7
"""No process has this pid: it is above the kernel's largest."""


@dataclass
class Group:
    """A memory group that says what it is told to say."""

    limit_bytes: int = GIB
    hard: int = 100 * MIB
    swap: int = 0

    def hard_bytes(self) -> int:
        return self.hard

    def swap_bytes(self) -> int:
        return self.swap

    def oom_kills(self) -> int | None:
        return 0


@pytest.mark.parametrize("limit", [256 * MIB, 512 * MIB, GIB, 2 * GIB, 8 * GIB, 256 * GIB])
def test_the_watchdog_trips_earlier_without_an_armed_fence(limit: int) -> None:
    assert trip_distance(limit, armed=True) >= 12 * MIB
    assert trip_distance(limit, armed=True) < limit // 10
    assert 32 * MIB <= trip_distance(limit, armed=False) <= 150 * MIB
    if limit <= 2 * GIB:
        assert trip_distance(limit, armed=False) > trip_distance(limit, armed=True)


def test_the_watchdog_kills_before_the_memory_group_is_full() -> None:
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=None)
    assert watchdog.look(0.0) is None
    group.hard = GIB - trip_distance(GIB, armed=False)
    assert watchdog.look(0.0) is None
    group.hard += 1
    told = watchdog.look(0.0)
    assert told is not None
    assert told == "the container or machine used 922 MiB of 1.00 GiB"


def test_an_armed_child_can_use_memory_closer_to_the_group_limit() -> None:
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=10 * MIB)
    watchdog.armed = True
    group.hard = GIB - trip_distance(GIB, armed=True)
    assert watchdog.look(0.0) is None  # nor does the allowance count: the fence itself sees to it
    group.hard += 1
    assert watchdog.look(0.0) is not None


def test_an_armed_child_with_workers_uses_the_trip_distance_without_a_fence() -> None:
    """Each process has a data limit of its own; nothing but the look bounds their sum."""
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=None)
    watchdog.armed = True
    group.hard = GIB - trip_distance(GIB, armed=False) + MIB
    assert watchdog.look(0.0) is None
    watchdog.family.add(12345)
    assert watchdog.look(0.0) is not None
    watchdog.close()


def test_an_unarmed_child_above_its_allowed_memory_is_killed() -> None:
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=50 * MIB)
    group.hard += 50 * MIB
    assert watchdog.look(0.0) is None
    group.hard += 1
    told = watchdog.look(0.0)
    assert told is not None
    assert told == "the process used 50.0 MiB; it may use 50.0 MiB"


def test_memory_shared_with_the_zygote_counts_when_workers_run() -> None:
    """The group did not grow by the shared part, and a training has it alone."""
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=300 * MIB, shared_bytes=200 * MIB)
    group.hard += 101 * MIB
    assert watchdog.look(0.0) is None, "alone, the child's own reading has it"
    watchdog.family.add(12345)
    assert watchdog.look(0.0) is not None
    watchdog.close()


def test_memory_of_neighbours_does_not_count_for_the_child() -> None:
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=10 * MIB, neighbours=True)
    group.hard += 500 * MIB
    assert watchdog.look(0.0) is None
    assert watchdog.is_back(0.0), "nor is it waited for"
    group.hard = GIB
    assert watchdog.look(0.0) is not None, "but nobody may fill the group"


def test_the_memory_of_the_child_is_measured_without_a_memory_group() -> None:
    group = Group(limit_bytes=64 * GIB, hard=0)
    watchdog = Watchdog(os.getpid(), group, allowed_bytes=1)
    try:
        assert watchdog.look(0.0) is not None
        before = watchdog.peak_anonymous_bytes
        with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
            for offset in range(0, len(block), 4096):
                block[offset] = 1
            watchdog.look(0.0)
        watchdog.look(0.0)
        assert watchdog.peak_anonymous_bytes >= before + 60 * MIB
        assert watchdog.last_anonymous_bytes < watchdog.peak_anonymous_bytes
    finally:
        watchdog.close()
        watchdog.close()


def test_near_limit_is_the_larger_of_group_and_allowance_usage() -> None:
    group = Group(hard=0)
    watchdog = Watchdog(NOBODY, group, allowed_bytes=100)
    watchdog.peak_anonymous_bytes = 90
    watchdog.look(0.0)
    assert watchdog.near_limit == pytest.approx(0.9)
    group.hard = GIB - trip_distance(GIB, armed=True)
    watchdog.look(0.0)
    assert watchdog.near_limit == pytest.approx(1.0)
    assert Watchdog(NOBODY, Group(hard=0), allowed_bytes=None).near_limit == 0.0


def test_swap_used_before_the_start_does_not_count_for_the_child() -> None:
    group = Group(swap=10 * MIB)
    watchdog = Watchdog(NOBODY, group, allowed_bytes=None)
    assert watchdog.swapped_bytes() == 0
    group.swap = 25 * MIB
    assert watchdog.swapped_bytes() == 15 * MIB
    group.swap = 0
    assert watchdog.swapped_bytes() == 0


def test_memory_is_back_when_usage_returns_to_the_start_value() -> None:
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=None)
    group.hard += 17 * MIB
    assert not watchdog.is_back(0.0)
    assert watchdog.is_back(0.0, tolerance_bytes=20 * MIB)
    group.hard -= 2 * MIB
    assert watchdog.is_back(0.0)


def test_memory_is_back_when_usage_stops_falling_above_the_start_value() -> None:
    group = Group()
    watchdog = Watchdog(NOBODY, group, allowed_bytes=None)
    group.hard += 300 * MIB
    for look in range(10):
        group.hard -= 18 * MIB
        assert not watchdog.is_back(look * STILL_S / 2), "it still falls"
    falls_until = 9 * STILL_S / 2
    group.hard -= MIB // 4
    assert not watchdog.is_back(falls_until + STILL_S * 0.9)
    assert watchdog.is_back(falls_until + STILL_S)


def test_memory_is_not_back_while_a_process_of_the_child_runs() -> None:
    group = Group()
    watchdog = Watchdog(os.getpid(), group, allowed_bytes=None)
    group.hard += 300 * MIB
    assert not watchdog.is_back(0.0)
    assert not watchdog.is_back(10 * STILL_S)
    watchdog.close()


@pytest.mark.child
def test_the_watchdog_remembers_every_descendant() -> None:
    watchdog = Watchdog(os.getpid(), Group(), allowed_bytes=None)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        watchdog.look(1.0)
        assert child in watchdog.family
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    watchdog.look(1.0 + ROLL_CALL_S)
    assert child in watchdog.family
    watchdog.close()
