"""The tests' own groups do what they say: the limit is real, the counters are the kernel's, nothing stays behind."""

from __future__ import annotations

import sys
import time

import pytest

from batchcal.core.units import MIB
from tests.support.cgroups import memory_cgroup

pytestmark = pytest.mark.cgroup


def test_a_command_starts_inside_its_cgroup() -> None:
    with memory_cgroup(200 * MIB) as group:
        done = group.run(["cat", "/proc/self/cgroup"])
        assert group.path.name in done.stdout
        assert group.run(["cat"], stdin="echo").stdout == "echo"
        assert group.pids() == []
    assert not group.path.exists()


def test_a_process_above_the_cgroup_limit_is_killed_and_counted() -> None:
    with memory_cgroup(64 * MIB) as group:
        assert group.run([sys.executable, "-c", "b'1' * (40 << 20)"]).returncode == 0
        assert group.oom_kills() == 0
        assert group.run([sys.executable, "-c", "b'1' * (200 << 20)"]).returncode == -9
        assert group.oom_kills() == 1
        assert group.peak_bytes() == 64 * MIB
        group.reset_peak()
        assert group.peak_bytes() < 32 * MIB


def test_the_cgroup_limit_can_be_raised_and_lowered() -> None:
    with memory_cgroup(None) as group:
        for size in (64, 32, 128):
            group.set_limit(size * MIB)
            assert int((group.path / "memory.limit_in_bytes").read_text(encoding="ascii")) == size * MIB
            assert int((group.path / "memory.memsw.limit_in_bytes").read_text(encoding="ascii")) == size * MIB


def test_a_running_process_ends_with_its_cgroup() -> None:
    with memory_cgroup(64 * MIB) as group:
        process = group.popen(["sleep", "60"])
        while not group.pids():
            time.sleep(0.01)
        assert group.usage_bytes() > 0
        assert group.stat()["total_rss"] >= 0
    with process:
        assert process.wait(5) == -9
