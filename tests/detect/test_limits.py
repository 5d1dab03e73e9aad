"""Open files, processes, address space: of trees, and real limits of real processes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.core.units import GIB
from batchcal.detect.limits import Limits, open_files, pids, read_limits
from batchcal.machine.roots import THIS_MACHINE, Root
from tests.support import machines
from tests.support.machines import Machine


def test_the_soft_limits_are_read_and_unlimited_is_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.limits(Max_open_files=1024, Max_address_space=8 * GIB)
    assert read_limits(Root(tmp_path)) == Limits(open_files=1024, address_space_bytes=8 * GIB)


def test_the_open_files_limit_falls_back_to_the_kernel_limit(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    notes: list[str] = []
    assert open_files(Root(tmp_path), Limits(), notes).learned_from == "/proc/sys/fs/nr_open"
    machine.remove("/proc/sys/fs/nr_open")
    assert open_files(Root(tmp_path), Limits(open_files=256), notes).value == 256
    assert notes == []
    assert open_files(Root(tmp_path), Limits(), notes).learned_from == "assumed"
    assert notes


def test_the_smallest_pids_limit_of_all_parent_groups_applies(tmp_path: Path) -> None:
    machine = machines.systemd_slices(tmp_path)
    machine.v2_group("/sys/fs/cgroup/system.slice", pids_max=100)
    found = pids(Root(tmp_path), Limits(processes=5000))
    assert found is not None
    assert (found.value, found.learned_from) == (100, "/sys/fs/cgroup/system.slice/pids.max")
    assert [candidate.value for candidate in found.considered] == [100, 512, 5000, 4194304]


def test_limits_that_do_not_exist_are_none(tmp_path: Path) -> None:
    assert pids(Root(tmp_path), Limits()) is None
    assert read_limits(Root(tmp_path)) == Limits()


ASK = """
from batchcal.detect.limits import read_limits
from batchcal.machine.roots import THIS_MACHINE
print(read_limits(THIS_MACHINE).model_dump_json())
"""


@pytest.mark.child
def test_the_real_limits_of_a_process_are_read() -> None:
    command = f"ulimit -S -n 321; ulimit -S -d 2000000; ulimit -S -v 4000000; exec {sys.executable} -c '{ASK}'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    found = Limits.model_validate_json(done.stdout)
    assert (found.open_files, found.data_bytes, found.address_space_bytes) == (321, 2_000_000 * 1024, 4_000_000 * 1024)


def test_limits_are_read_from_the_kernel_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    from_file = read_limits(THIS_MACHINE)
    monkeypatch.setattr(Root, "read", lambda self, name: None)
    assert read_limits(THIS_MACHINE) == from_file
    assert from_file.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_limits_are_unknown_without_the_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Root, "read", lambda self, name: None)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert read_limits(THIS_MACHINE) == Limits()
