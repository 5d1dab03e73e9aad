"""Which directories hold this process, over every way in which they are mounted and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchcal.machine.hierarchy import Chain, locate, own_groups
from batchcal.machine.roots import Root
from tests.support import machines
from tests.support.machines import Machine

MEMORY_LEVELS: dict[Callable[[Path], Machine], tuple[str, tuple[str, ...]]] = {
    machines.docker_v1: ("v1", ("/sys/fs/cgroup/memory",)),
    machines.docker_v2: ("v2", ("/sys/fs/cgroup",)),
    machines.kubernetes_v1: (
        "v1",
        (
            "/sys/fs/cgroup/memory/kubepods/burstable/pod7d1/c0ffee",
            "/sys/fs/cgroup/memory/kubepods/burstable/pod7d1",
            "/sys/fs/cgroup/memory/kubepods/burstable",
            "/sys/fs/cgroup/memory/kubepods",
            "/sys/fs/cgroup/memory",
        ),
    ),
    machines.systemd_slices: (
        "v2",
        (
            "/sys/fs/cgroup/system.slice/ml.slice/train.service",
            "/sys/fs/cgroup/system.slice/ml.slice",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup",
        ),
    ),
    machines.hybrid: ("v1", ("/sys/fs/cgroup/memory/api/69ea", "/sys/fs/cgroup/memory/api", "/sys/fs/cgroup/memory")),
}


@pytest.mark.parametrize("build", MEMORY_LEVELS, ids=lambda build: build.__name__)
def test_all_parent_groups_are_located(build: Callable[[Path], Machine], tmp_path: Path) -> None:
    build(tmp_path)
    version, levels = MEMORY_LEVELS[build]
    chain = locate("memory", Root(tmp_path))
    assert chain is not None
    assert (chain.version, chain.levels) == (version, levels)
    assert (chain.own, chain.top) == (levels[0], levels[-1])


def test_each_v1_controller_has_a_path_of_its_own(tmp_path: Path) -> None:
    machines.hybrid(tmp_path)
    root = Root(tmp_path)
    assert locate("memory", root) != locate("cpu", root)
    assert locate("cpu", root) == Chain(version="v1", levels=("/sys/fs/cgroup/cpu,cpuacct",))


def test_no_group_is_located_without_a_cgroup_mount(tmp_path: Path) -> None:
    machines.gvisor(tmp_path)
    assert locate("memory", Root(tmp_path)) is None


def test_a_v2_hierarchy_without_controllers_is_ignored(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("/ /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw")
    machine.member("0::/")
    machine.write("/sys/fs/cgroup/unified/cgroup.controllers", "")
    assert locate("memory", Root(tmp_path)) is None


def test_the_mount_with_our_own_group_is_preferred_to_a_host_mount(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("/docker/other /host/cgroup rw - cgroup2 cgroup rw")
    machine.v2_group("/host/cgroup", memory_max=1)
    machine.v2("/docker/4f1c", top="/docker/4f1c")
    machine.v2_group("/sys/fs/cgroup", memory_max=1 << 30)
    chain = locate("memory", Root(tmp_path))
    assert chain is not None
    assert chain.levels == ("/sys/fs/cgroup",)


def test_a_group_path_of_another_namespace_falls_back_to_the_mount_point(tmp_path: Path) -> None:
    # Docker in Docker: /proc/self/cgroup speaks of the outer host.
    machine = Machine(tmp_path)
    point = machine.v1("memory", "/docker/outer/docker/inner", top="/docker/inner")
    machine.v1_memory(point, 1 << 30)
    chain = locate("memory", Root(tmp_path))
    assert chain is not None
    assert chain.levels == (point,)


def test_a_group_path_outside_the_namespace_is_not_searched_above_the_mount(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.v2("/../sibling")
    machine.v2_group("/sys/fs/cgroup", memory_max=1 << 30)
    machine.v2_group("/sys/fs/sibling", memory_max=1)
    chain = locate("memory", Root(tmp_path))
    assert chain is not None
    assert chain.levels == ("/sys/fs/cgroup",)


def test_an_invisible_group_is_skipped_and_its_parents_are_used(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.v2("/kubepods/pod1/gone")
    machine.v2_group("/sys/fs/cgroup/kubepods", memory_max=1 << 32)
    machine.v2_group("/sys/fs/cgroup/kubepods/pod1", memory_max=1 << 30)
    chain = locate("memory", Root(tmp_path))
    assert chain is not None
    assert chain.levels == ("/sys/fs/cgroup/kubepods/pod1", "/sys/fs/cgroup/kubepods", "/sys/fs/cgroup")


def test_spaces_in_a_mount_point_are_decoded(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("/ /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup2 rw")
    machine.member("0::/")
    machine.v2_group("/sys/fs/cgroup/my groups", memory_max=1 << 30)
    chain = locate("memory", Root(tmp_path))
    assert chain is not None
    assert chain.levels == ("/sys/fs/cgroup/my groups",)


def test_malformed_cgroup_and_mount_lines_are_ignored(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("nonsense")
    machine.mount("/ /sys/fs/cgroup rw - cgroup2")
    machine.member("nonsense")
    machine.member("3:cpu,cpuacct:/a:b")
    root = Root(tmp_path)
    assert own_groups(root) == {"cpu": "/a:b", "cpuacct": "/a:b"}
    assert locate("cpu", root) is None
