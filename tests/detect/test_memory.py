"""Host memory: limits of a process beside those of its groups, swap, and what cannot be read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import Environment, Memory
from batchcal.detect.limits import read_limits
from batchcal.detect.memory import read_memory
from batchcal.machine.roots import Root
from tests.support import machines
from tests.support.machines import NO_LIMIT, Machine


def memory_of(root: Path, notes: list[str] | None = None) -> Memory:
    return read_memory(Root(root), read_limits(Root(root)), notes if notes is not None else [])


@pytest.mark.parametrize(
    ("row", "name", "field"),
    [("Max_data_size", "RLIMIT_DATA", "rlimit_data_bytes"), ("Max_address_space", "RLIMIT_AS", "rlimit_as_bytes")],
)
def test_a_process_limit_below_the_group_limit_applies(row: str, name: str, field: str, tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    machine.limits(**{row: 700 * MIB})
    found = memory_of(tmp_path)
    assert (found.limit.value, found.limit.learned_from) == (700 * MIB, name)
    assert getattr(found, field) == 700 * MIB
    assert found.cgroup_path == "/sys/fs/cgroup"


def test_a_process_limit_above_the_group_limit_does_not_apply(tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    machine.limits(Max_data_size=16 * GIB)
    found = memory_of(tmp_path)
    assert found.limit.value == 2 * GIB
    assert found.limit.why == "above it, the kernel kills a process of the group; less than the 16.0 GiB of RLIMIT_DATA"


def test_the_reason_names_the_next_limit(tmp_path: Path) -> None:
    machines.kubernetes_v2(tmp_path)
    assert memory_of(tmp_path).limit.why.endswith("less than the 4.00 GiB of /sys/fs/cgroup/memory.max")


def test_the_parent_group_is_selected_for_equal_limits(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.v2("/pod/own")
    machine.v2_group("/sys/fs/cgroup/pod", memory_max=GIB, memory_current=900 * MIB)
    machine.v2_group("/sys/fs/cgroup/pod/own", memory_max=GIB)
    found = memory_of(tmp_path)
    assert found.limit.learned_from == f"{found.cgroup_path}/memory.max" == "/sys/fs/cgroup/pod/memory.max"
    assert found.used_bytes == 790 * MIB


def test_a_limit_hidden_above_the_container_is_explained(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.v1_memory(machine.v1("memory", "/docker/a", top="/docker/a"), NO_LIMIT, hidden=3 * GIB)
    found = memory_of(tmp_path)
    assert found.limit.value == 3 * GIB
    assert "a parent group that is not visible here" in found.limit.why


@pytest.mark.parametrize(
    ("memsw", "limit", "swap"),
    [(NO_LIMIT, NO_LIMIT, None), (GIB, GIB, 0), (3 * GIB, GIB, 2 * GIB), (None, GIB, None)],
)
def test_the_v1_swap_limit_is_memsw_minus_memory(memsw: int | None, limit: int, swap: int | None, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.v1_memory(machine.v1("memory", "/"), limit, memsw=memsw)
    assert memory_of(tmp_path).swap_limit_bytes == swap


def test_a_group_with_unreadable_usage_produces_a_note(tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    machine.remove("/sys/fs/cgroup/memory.stat")
    notes: list[str] = []
    found = memory_of(tmp_path, notes)
    assert found.limit.value == 2 * GIB
    assert "usage of the limiting control group cannot be read" in notes[0]


def test_memory_comes_from_psutil_with_a_note_without_meminfo(tmp_path: Path) -> None:
    notes: list[str] = []
    found = memory_of(tmp_path, notes)
    assert found.limit.learned_from == "psutil"
    assert "psutil" in notes[0]
    assert found.cgroup_version == "none"
    assert found.cgroup_path == ""


@pytest.mark.child
@pytest.mark.parametrize("hide", ["mount -t tmpfs tmpfs /proc", "mount --bind /dev/null /proc/meminfo"])
def test_total_memory_comes_from_the_system_if_meminfo_is_unreadable(hide: str) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    program = "from batchcal.detect.detect import detect; print(detect().model_dump_json())"
    command = f"{hide} && exec {sys.executable} -c '{program}'"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("needs root for a mount namespace")
    assert done.returncode == 0, done.stderr
    found = Environment.model_validate_json(done.stdout)
    assert found.memory.total_bytes == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.02)
    assert any("/proc/meminfo cannot be read" in note for note in found.notes)
