"""What detect answers on machines that are not here: containers, pods, slices, a bare server, a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.detect.detect import detect
from batchcal.detect.environment import Environment, Fact
from tests.support import machines
from tests.support.machines import MACHINES, Machine


def environment_of(build: Callable[[Path], Machine], root: Path) -> Environment:
    return detect(root=root, environ={}, ask_space=build(root).ask_space)


def codes(environment: Environment) -> set[str]:
    return {advice.code for advice in environment.advice}


EXPECTED: dict[str, tuple[int, str, str, float, int, int, bool | None]] = {
    # limit, its file, group version, cores, optimal threads, optimal workers, oom group
    "docker_v1": (GIB, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "v1", 1.5, 1, 0, None),
    "docker_v2": (2 * GIB, "/sys/fs/cgroup/memory.max", "v2", 2.0, 2, 0, False),
    "kubernetes_v2": (4 * GIB * 9 // 10, "/sys/fs/cgroup/memory.high", "v2", 3.5, 3, 0, True),
    "kubernetes_v1": (3 * GIB, "/sys/fs/cgroup/memory/kubepods/burstable/pod7d1/memory.limit_in_bytes", "v1", 2.5, 2, 0, None),
    "systemd_slices": (6 * GIB, "/sys/fs/cgroup/system.slice/ml.slice/memory.max", "v2", 3.0, 3, 0, True),
    "railway": (8 * 10**9, "/sys/fs/cgroup/memory.max", "v2", 8.0, 8, 3, False),
    "bare_metal": (128 * GIB, "/proc/meminfo MemTotal", "v2", 32.0, 16, 15, None),
    "hybrid": (2 * GIB, "/sys/fs/cgroup/memory/api/69ea/memory.limit_in_bytes", "v1", 8.0, 4, 3, None),
    "gvisor": (2 * GIB, "/proc/meminfo MemTotal", "none", 4.0, 4, 1, None),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_binding_limits_and_their_origin_are_detected(name: str, tmp_path: Path) -> None:
    found = environment_of(MACHINES[name], tmp_path)
    limit, learned_from, version, cores, threads, workers, oom_group = EXPECTED[name]
    assert (found.memory.limit.value, found.memory.limit.learned_from) == (limit, learned_from)
    assert (found.memory.cgroup_version, found.memory.oom_group) == (version, oom_group)
    assert found.cpu.cores.value == cores
    assert (found.optimal_threads, found.optimal_workers) == (threads, workers)


@pytest.mark.parametrize("name", MACHINES)
def test_every_detected_value_is_the_smallest_candidate_with_a_reason(name: str, tmp_path: Path) -> None:
    found = environment_of(MACHINES[name], tmp_path)
    facts: list[Fact[float] | Fact[int]] = [
        found.cpu.cores,
        found.memory.limit,
        found.open_files,
        *([found.pids] if found.pids else []),
    ]
    for fact in facts:
        assert fact.why
        assert fact.value == min(candidate.value for candidate in fact.considered)
        assert fact.learned_from in {candidate.learned_from for candidate in fact.considered}
        assert str(tmp_path) not in fact.learned_from  # the machine's own name for it, not ours


@pytest.mark.parametrize("name", MACHINES)
def test_a_detected_environment_is_unchanged_by_a_json_round_trip(name: str, tmp_path: Path) -> None:
    found = environment_of(MACHINES[name], tmp_path)
    assert Environment.model_validate_json(found.model_dump_json()) == found


def test_docker_defaults_produce_shared_memory_and_cpu_quota_advice(tmp_path: Path) -> None:
    found = environment_of(machines.docker_v1, tmp_path)
    assert found.shared_memory is not None
    assert found.shared_memory.size_bytes == 64 * MIB
    assert {"shm-small", "quota-below-cores"} <= codes(found)
    assert found.memory.swap_limit_bytes == GIB
    assert found.memory.used_bytes == 190 * MIB
    assert (found.pids and found.pids.value) == 2048
    assert "less than the 8 of /proc/self/status Cpus_allowed_list" in found.cpu.cores.why


def test_the_oom_group_advice_is_first_for_a_kubernetes_pod(tmp_path: Path) -> None:
    found = environment_of(machines.kubernetes_v2, tmp_path)
    assert found.advice[0].code == "oom-group"
    assert "memory-high" in codes(found)
    assert found.memory.high_bytes == 4 * GIB * 9 // 10
    assert found.memory.swap_limit_bytes == 0


def test_memory_usage_is_that_of_the_limiting_slice(tmp_path: Path) -> None:
    found = environment_of(machines.systemd_slices, tmp_path)
    assert found.memory.cgroup_path == "/sys/fs/cgroup/system.slice/ml.slice"
    assert found.memory.used_bytes == 2 * GIB - 110 * MIB
    assert (found.memory.swap_total_bytes, found.memory.swap_limit_bytes) == (8 * GIB, GIB)
    assert "swap-on" in codes(found)
    assert (found.pids and found.pids.value) == 512


@pytest.mark.parametrize(("quota", "threads"), [("150000 100000", 1), ("400000 50000", 8), ("25000 100000", 1)])
def test_a_quota_stays_fractional_under_64_visible_processors(quota: str, threads: int, tmp_path: Path) -> None:
    machine = machines.railway(tmp_path)
    machine.write("/sys/fs/cgroup/cpu.max", quota)
    found = detect(root=tmp_path, environ={}, ask_space=machine.ask_space)
    whole, period = quota.split()
    assert found.cpu.cores.value == found.cpu.quota_cores == int(whole) / int(period)
    assert (found.cpu.visible, found.cpu.logical, found.cpu.physical) == (64, 64, 32)
    assert found.optimal_threads == threads
    assert "quota-below-cores" in codes(found)


def test_a_bare_metal_server_has_no_limits_and_no_notes(tmp_path: Path) -> None:
    found = environment_of(machines.bare_metal, tmp_path)
    assert found.memory.swap_limit_bytes is None
    assert found.cpu.quota_cores is None
    assert found.memory.limit.considered[0].learned_from == "/proc/meminfo MemTotal"
    assert found.notes == ()


def test_a_sandbox_without_system_files_notes_its_assumptions(tmp_path: Path) -> None:
    found = environment_of(machines.gvisor, tmp_path)
    text = " ".join(found.notes)
    assert "affinity mask" in text
    assert "topology" in text
    assert "open files" in text
    assert "control group" in text
    assert found.cpu.logical == found.cpu.physical == 4
    assert found.pids is None
    assert found.open_files.value == 1024
