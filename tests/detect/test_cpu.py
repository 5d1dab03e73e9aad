"""Cores: the mask, the cpuset, the quota, what launchers ask for, and the cores behind the processors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchcal.detect.cpu import parse_list, read_cpu
from batchcal.detect.environment import Cpu
from batchcal.machine.roots import THIS_MACHINE, Root
from tests.support import machines
from tests.support.machines import Machine


def cpu_of(root: Path, environ: dict[str, str] | None = None, notes: list[str] | None = None) -> Cpu:
    return read_cpu(Root(root), environ or {}, notes if notes is not None else [])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0-1\n", {0, 1}), ("all", set()), ("3-", set())],
)
def test_lists_of_processors_are_read(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


@pytest.mark.parametrize(
    ("environ", "cores", "learned_from"),
    [
        ({}, 8, "/proc/self/status Cpus_allowed_list"),
        ({"SLURM_CPUS_PER_TASK": "3"}, 3, "SLURM_CPUS_PER_TASK"),
        ({"PYTHON_CPU_COUNT": "2", "SLURM_CPUS_PER_TASK": "4"}, 2, "PYTHON_CPU_COUNT"),
        ({"PYTHON_CPU_COUNT": "default"}, 8, "/proc/self/status Cpus_allowed_list"),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8, "/proc/self/status Cpus_allowed_list"),
    ],
)
def test_launcher_variables_can_lower_the_core_count(
    environ: dict[str, str], cores: float, learned_from: str, tmp_path: Path
) -> None:
    Machine(tmp_path)
    found = cpu_of(tmp_path, environ)
    assert (found.cores.value, found.cores.learned_from) == (cores, learned_from)


@pytest.mark.parametrize("text", ["many", "-2", "0"])
def test_an_invalid_launcher_variable_is_ignored_with_a_note(text: str, tmp_path: Path) -> None:
    Machine(tmp_path)
    notes: list[str] = []
    assert cpu_of(tmp_path, {"SLURM_CPUS_PER_TASK": text}, notes).cores.value == 8
    assert "SLURM_CPUS_PER_TASK" in notes[0]


def test_the_smallest_cpu_quota_of_all_parent_groups_applies(tmp_path: Path) -> None:
    machine = machines.systemd_slices(tmp_path)
    machine.v2_group("/sys/fs/cgroup/system.slice", cpu_max="90000 60000")
    machine.v2_group("/sys/fs/cgroup/system.slice/ml.slice/train.service", cpu_max="max 100000")
    found = cpu_of(tmp_path)
    assert (found.cores.value, found.cores.learned_from) == (1.5, "/sys/fs/cgroup/system.slice/cpu.max")
    assert [candidate.value for candidate in found.cores.considered] == [8, 3.0, 1.5]


@pytest.mark.parametrize("text", ["max 100000", "nonsense", "1 2 3", "0 100000", "100000 0"])
def test_an_unlimited_or_invalid_quota_is_none(text: str, tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    machine.write("/sys/fs/cgroup/cpu.max", text)
    assert cpu_of(tmp_path).quota_cores is None


def test_a_cpuset_smaller_than_the_mask_lowers_the_core_count(tmp_path: Path) -> None:
    machine = machines.docker_v1(tmp_path)
    machine.write("/sys/fs/cgroup/cpuset/cpuset.cpus", "2")
    found = cpu_of(tmp_path)
    assert (found.cores.value, found.cores.learned_from) == (1, "/sys/fs/cgroup/cpuset/cpuset.cpus")


def test_hyperthreads_of_a_core_are_one_physical_core(tmp_path: Path) -> None:
    machine = Machine(tmp_path, processors=8)
    machine.processors(8, 2, mask="0,1,4")
    found = cpu_of(tmp_path)
    assert (found.logical, found.physical) == (3, 2)


def test_the_cores_are_counted_from_cpuinfo_if_sys_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, processors=8)
    machine.processors(8, 2, mask="0,1,4")
    for number in range(8):
        machine.remove(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    machine.remove("/sys/devices/system/cpu/online")
    found = cpu_of(tmp_path)
    assert (found.visible, found.logical, found.physical) == (8, 3, 2)


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd40\nFeatures : fp asimd sve bf16", "Arm 0x41 part 0xd40"),
        ("processor : 0\nmodel name : AMD EPYC 9R14", "AMD EPYC 9R14"),
        ("Hardware : BCM2835", "BCM2835"),
    ],
)
def test_the_cpu_model_is_named_on_every_architecture(cpuinfo: str, model: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write("/proc/cpuinfo", cpuinfo)
    assert cpu_of(tmp_path).model == model


def test_instruction_sets_that_choose_kernels_are_kept(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert cpu_of(tmp_path).instructions == ("avx", "avx2", "avx512f", "fma")
    machine.write("/proc/cpuinfo", "processor : 0\nFeatures : fp asimd sve bf16 crc32")
    assert cpu_of(tmp_path).instructions == ("asimd", "bf16", "sve")


def test_cpu_detection_works_without_proc_and_sys(tmp_path: Path) -> None:
    notes: list[str] = []
    found = cpu_of(tmp_path, {}, notes)
    assert found.cores.value == found.logical == os.cpu_count()
    assert len(notes) == 2


def test_the_affinity_mask_of_this_process_is_detected() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        found = read_cpu(THIS_MACHINE, {}, [])
        assert found.logical == 1
        assert found.cores.value <= 1
    finally:
        os.sched_setaffinity(0, allowed)
