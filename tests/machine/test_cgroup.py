"""The meter of the memory that binds: on trees, and inside real groups with the real OOM killer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.machine.cgroup import MachineMemory, MemoryGroup, binding_bound, finite, memory_bounds, memory_meter
from batchcal.machine.hierarchy import locate
from batchcal.machine.roots import Root
from tests.support import machines
from tests.support.cgroups import memory_cgroup
from tests.support.machines import NO_LIMIT, Machine


def meter_of(root: Path) -> MemoryGroup | MachineMemory:
    return memory_meter(Root(root))


def test_v1_subtracts_file_pages_of_all_child_groups(tmp_path: Path) -> None:
    machines.docker_v1(tmp_path)
    meter = meter_of(tmp_path)
    assert (meter.version, meter.directory, meter.limit_bytes) == ("v1", "/sys/fs/cgroup/memory", GIB)
    assert meter.usage_bytes() == 300 * MIB
    assert meter.reclaimable_bytes() == 110 * MIB
    assert meter.hard_bytes() == 190 * MIB
    assert (meter.swap_bytes(), meter.oom_kills()) == (0, 0)
    meter.close()


def test_v2_reads_usage_statistics_swap_and_events(tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    meter = meter_of(tmp_path)
    assert (meter.version, meter.directory, meter.limit_bytes) == ("v2", "/sys/fs/cgroup", 2 * GIB)
    assert meter.hard_bytes() == 190 * MIB
    machine.write("/sys/fs/cgroup/memory.swap.current", str(5 * MIB))
    machine.write("/sys/fs/cgroup/memory.events", "oom 2\noom_kill 1\noom_group_kill 1")
    assert (meter.swap_bytes(), meter.oom_kills()) == (5 * MIB, 1)
    meter.close()


def test_readings_are_current_and_never_negative(tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    meter = meter_of(tmp_path)
    machine.write("/sys/fs/cgroup/memory.current", str(700 * MIB))
    assert meter.hard_bytes() == 590 * MIB
    machine.write("/sys/fs/cgroup/memory.current", str(100 * MIB))
    assert meter.hard_bytes() == 0
    meter.close()


def test_usage_is_read_from_the_ancestor_that_sets_the_limit(tmp_path: Path) -> None:
    machines.systemd_slices(tmp_path)
    meter = meter_of(tmp_path)
    assert meter.directory == "/sys/fs/cgroup/system.slice/ml.slice"
    assert meter.usage_bytes() == 2 * GIB
    meter.close()


def test_the_parent_group_binds_if_two_limits_are_equal(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.v2("/pod/own")
    machine.v2_group("/sys/fs/cgroup/pod", memory_max=GIB)
    machine.v2_group("/sys/fs/cgroup/pod/own", memory_max=GIB)
    assert meter_of(tmp_path).directory == "/sys/fs/cgroup/pod"


def test_memory_high_binds_if_it_is_below_memory_max(tmp_path: Path) -> None:
    machines.kubernetes_v2(tmp_path)
    assert meter_of(tmp_path).limit_bytes == 4 * GIB * 9 // 10


def test_a_limit_above_the_visible_groups_comes_from_memory_stat(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    point = machine.v1("memory", "/docker/4f1c", top="/docker/4f1c")
    machine.v1_memory(point, NO_LIMIT, hidden=3 * GIB)
    bounds = memory_bounds(locate("memory", Root(tmp_path)) or pytest.fail("no group"), Root(tmp_path))
    assert [(bound.bytes, bound.kind) for bound in bounds] == [(3 * GIB, "hidden")]
    assert meter_of(tmp_path).limit_bytes == 3 * GIB


@pytest.mark.parametrize("text", ["max", str(NO_LIMIT), str(2**63 - 65536), str(2**63 - 1), "-1"])
def test_every_representation_of_unlimited_is_none(text: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.v2("/")
    machine.v2_group("/sys/fs/cgroup", memory_max=text)
    chain = locate("memory", Root(tmp_path)) or pytest.fail("no group")
    assert memory_bounds(chain, Root(tmp_path)) == ()
    assert binding_bound(()) is None


def test_a_limit_above_the_machine_memory_does_not_bind(tmp_path: Path) -> None:
    machine = Machine(tmp_path, memory_bytes=8 * GIB)
    machine.v2("/")
    machine.v2_group("/sys/fs/cgroup", memory_max=64 * GIB)
    meter = meter_of(tmp_path)
    assert (meter.version, meter.limit_bytes) == ("none", 8 * GIB)
    assert finite(64 * GIB) == 64 * GIB


def test_the_machine_memory_is_measured_without_a_binding_group(tmp_path: Path) -> None:
    machine = machines.bare_metal(tmp_path)
    machine.meminfo(128 * GIB, available=100 * GIB, swap=4 * GIB)
    meter = meter_of(tmp_path)
    assert isinstance(meter, MachineMemory)
    assert meter.directory == "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"
    assert meter.usage_bytes() == 53 * GIB
    assert meter.hard_bytes() == 28 * GIB
    assert meter.reclaimable_bytes() == 25 * GIB
    assert (meter.available_bytes(), meter.swap_total_bytes(), meter.swap_bytes()) == (100 * GIB, 4 * GIB, 4 * GIB)
    assert meter.oom_kills() == 0
    meter.close()


def test_oom_kills_of_the_machine_are_counted_without_groups(tmp_path: Path) -> None:
    machine = machines.gvisor(tmp_path)
    assert meter_of(tmp_path).oom_kills() == 0
    machine.write("/proc/vmstat", "nr_free_pages 5\noom_kill 3")
    meter = meter_of(tmp_path)
    assert meter.oom_kills() == 3
    meter.close()


def test_a_group_without_readable_usage_still_sets_the_limit(tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    machine.remove("/sys/fs/cgroup/memory.current")
    meter = meter_of(tmp_path)
    assert (meter.version, meter.limit_bytes) == ("none", 2 * GIB)
    assert meter.hard_bytes() == 12 * GIB


def test_machine_memory_comes_from_psutil_without_meminfo(tmp_path: Path) -> None:
    meter = meter_of(tmp_path)
    assert isinstance(meter, MachineMemory)
    assert meter.limit_bytes == MachineMemory().total_bytes
    assert 0 < meter.hard_bytes() < meter.limit_bytes
    assert meter.swap_total_bytes() >= meter.swap_bytes()
    meter.close()


INSIDE = """
import json, sys
from batchcal.machine.cgroup import memory_meter
meter = memory_meter()
before = meter.hard_bytes()
held = b"1" * (100 << 20)
print(json.dumps([meter.version, meter.directory, meter.limit_bytes, meter.hard_bytes() - before, meter.oom_kills()]))
"""


@pytest.mark.smoke
@pytest.mark.cgroup
def test_a_real_nested_group_uses_the_limit_and_usage_of_its_ancestor() -> None:
    with memory_cgroup(500 * MIB) as limiting, memory_cgroup(None, parent=limiting) as own:
        done = own.run([sys.executable, "-c", INSIDE])
    assert done.returncode == 0, done.stderr
    version, directory, limit, grown, kills = json.loads(done.stdout)
    assert (version, directory, limit, kills) == ("v1", str(limiting.path), 500 * MIB, 0)
    assert 99 * MIB < grown < 108 * MIB


FILE_PAGES = """
import json, os, sys
from batchcal.machine.cgroup import memory_meter
meter = memory_meter()
before = meter.usage_bytes(), meter.hard_bytes()
with open(sys.argv[1], "wb") as file:
    file.write(b"1" * (64 << 20))
    file.flush()
    os.fsync(file.fileno())
print(json.dumps([meter.usage_bytes() - before[0], meter.hard_bytes() - before[1]]))
"""


@pytest.mark.cgroup
def test_page_cache_counts_as_usage_but_not_as_hard_memory(tmp_path: Path) -> None:
    with memory_cgroup(500 * MIB) as group:
        done = group.run([sys.executable, "-c", FILE_PAGES, str(tmp_path / "file")])
    usage, hard = json.loads(done.stdout)
    assert usage > 50 * MIB
    assert hard < 16 * MIB


KILLED = """
import subprocess, sys
from batchcal.machine.cgroup import memory_meter
meter = memory_meter()
before = meter.oom_kills()
child = subprocess.run([sys.executable, "-c", "open('/proc/self/oom_score_adj', 'w').write('1000'); b'1' * (400 << 20)"])
print(child.returncode, meter.oom_kills() - before)
"""


@pytest.mark.cgroup
def test_an_oom_kill_caused_by_the_limit_of_an_ancestor_is_counted() -> None:
    with memory_cgroup(150 * MIB) as limiting, memory_cgroup(None, parent=limiting) as own:
        done = own.run([sys.executable, "-c", KILLED])
        # v1 counts where the process died, which is why our own group's counter must be read as well.
        assert (limiting.oom_kills(), own.oom_kills()) == (0, 1)
    assert done.stdout.split() == ["-9", "1"], done.stderr


@pytest.mark.cgroup
def test_a_removed_group_raises_os_error() -> None:
    with memory_cgroup(200 * MIB) as group:
        bounds = [bound for bound in memory_bounds(locate("memory") or pytest.fail("no group")) if bound.kind == "max"]
        chain = (locate("memory") or pytest.fail("no group")).model_copy(update={"levels": (str(group.path),)})
        bound = binding_bound(memory_bounds(chain)) or pytest.fail("no limit")
        meter = MemoryGroup(chain, bound)
        assert meter.limit_bytes == 200 * MIB
        assert all(other.level != bound.level for other in bounds)
    with pytest.raises(OSError, match="No such device"):
        meter.usage_bytes()
    meter.close()
