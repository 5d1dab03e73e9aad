"""File trees that look like /proc and /sys of machines we do not have: a container, a pod, a slice, a bare server.

A tree holds what detect reads and nothing else. Each function at the end lays out one whole machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from batchcal.core.units import GIB, MIB
from batchcal.detect.shared_memory import Space

NO_LIMIT: Final = 9223372036854771712
"""What cgroup v1 writes for "no limit" with pages of 4 KiB."""
V1: Final = ("cpu,cpuacct", "cpuset", "memory", "pids")
V2_CONTROLLERS: Final = "cpuset cpu io memory hugetlb pids rdma misc"


class Machine:
    """A tree under construction. Names are absolute, as the machine would say them."""

    def __init__(self, root: Path, *, memory_bytes: int = 24 * GIB, processors: int = 8, threads_per_core: int = 2) -> None:
        self.root = root
        self.shm = Space(size_bytes=memory_bytes // 2, free_bytes=memory_bytes // 2)
        self._mounts: list[str] = []
        self._groups: list[str] = []
        self.write("/proc/sys/kernel/osrelease", "6.8.0-45-generic")
        self.write("/proc/sys/kernel/pid_max", "4194304")
        self.write("/proc/sys/fs/nr_open", "1048576")
        self.write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
        self.limits()
        self.meminfo(memory_bytes)
        self.processors(processors, threads_per_core)

    def write(self, name: str, text: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")

    def remove(self, name: str) -> None:
        (self.root / name.lstrip("/")).unlink()

    def meminfo(self, total: int, *, available: int | None = None, swap: int = 0) -> None:
        free = total // 2 if available is None else available
        rows = {"MemTotal": total, "MemFree": free * 3 // 4, "MemAvailable": free, "Cached": free // 4, "SwapTotal": swap}
        self.write("/proc/meminfo", "\n".join(f"{key + ':':<16}{value // 1024:>8} kB" for key, value in rows.items()))

    def processors(self, count: int, threads_per_core: int = 2, *, mask: str | None = None) -> None:
        self.write("/sys/devices/system/cpu/online", f"0-{count - 1}")
        self.write("/proc/self/status", f"Name:\tpython\nCpus_allowed_list:\t{mask or f'0-{count - 1}'}\nThreads:\t1")
        cores = count // threads_per_core
        blocks = []
        for number in range(count):
            siblings = ",".join(str(number % cores + cores * index) for index in range(threads_per_core))
            self.write(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", siblings)
            flags = "fpu sse sse2 avx avx2 fma avx512f"
            blocks.append(
                f"processor\t: {number}\nmodel name\t: Intel(R) Xeon(R) Platinum 8481C\nphysical id\t: 0\n"
                f"core id\t\t: {number % cores}\nflags\t\t: {flags}"
            )
        self.write("/proc/cpuinfo", "\n\n".join(blocks))

    def limits(self, **soft: int) -> None:
        """Soft limits by the row's name with underscores: `Max_open_files=1024`; what is not given is unlimited."""
        values = {"Max open files": "1048576"} | {name.replace("_", " "): str(value) for name, value in soft.items()}
        rows = ["Max data size", "Max processes", "Max open files", "Max address space"]
        head = "Limit                     Soft Limit           Hard Limit           Units     \n"
        self.write(
            "/proc/self/limits", head + "\n".join(f"{row:<26}{values.get(row, 'unlimited'):<21}unlimited  " for row in rows)
        )

    def mount(self, line: str) -> None:
        """A line of the mount table, without the three numbers it begins with."""
        self._mounts.append(f"{30 + len(self._mounts)} 29 0:{26 + len(self._mounts)} {line}")
        self.write("/proc/self/mountinfo", "\n".join(self._mounts))

    def member(self, line: str) -> None:
        """A line of /proc/self/cgroup."""
        self._groups.append(line)
        self.write("/proc/self/cgroup", "\n".join(self._groups))

    def v2(self, group: str, *, top: str = "/", point: str = "/sys/fs/cgroup") -> None:
        """The unified hierarchy, seen from `top`, with this process in `group`."""
        self.mount(f"{top} {point} ro,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate")
        self.member(f"0::{group}")
        self.write(f"{point}/cgroup.controllers", V2_CONTROLLERS)

    def v2_group(self, directory: str, **values: int | str) -> None:
        """Control files with dots as underscores, `memory_max=...`. A group always says its usage and statistics."""
        defaults: dict[str, int | str] = {
            "cgroup_controllers": V2_CONTROLLERS,
            "memory_current": 300 * MIB,
            "memory_events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
            "memory_stat": v2_stat(anonymous=180 * MIB, inactive_file=90 * MIB, active_file=20 * MIB),
        }
        for name, value in (defaults | values).items():
            self.write(f"{directory}/{name.replace('_', '.')}", str(value))

    def v1(self, controllers: str, group: str, *, top: str = "/") -> str:
        """One v1 hierarchy; returns its mount point."""
        point = f"/sys/fs/cgroup/{controllers}"
        self.mount(f"{top} {point} ro,nosuid,relatime master:11 - cgroup cgroup rw,{controllers}")
        self.member(f"{12 - len(self._groups)}:{controllers}:{group}")
        (self.root / point.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return point

    def v1_memory(
        self, directory: str, limit: int, *, memsw: int | None = None, usage: int = 300 * MIB, hidden: int = NO_LIMIT
    ) -> None:
        self.write(f"{directory}/memory.limit_in_bytes", str(limit))
        self.write(f"{directory}/memory.usage_in_bytes", str(usage))
        self.write(f"{directory}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0")
        if memsw is not None:
            self.write(f"{directory}/memory.memsw.limit_in_bytes", str(memsw))
        own = {"inactive_file": 1 * MIB, "active_file": 1 * MIB, "swap": 0}
        whole = {"total_inactive_file": 90 * MIB, "total_active_file": 20 * MIB, "total_swap": 0}
        rows = own | {"hierarchical_memory_limit": min(limit, hidden)} | whole
        self.write(f"{directory}/memory.stat", "\n".join(f"{key} {value}" for key, value in rows.items()))

    def v1_cpu(self, directory: str, *, quota_us: int = -1, period_us: int = 100_000) -> None:
        self.write(f"{directory}/cpu.cfs_quota_us", str(quota_us))
        self.write(f"{directory}/cpu.cfs_period_us", str(period_us))

    def ask_space(self, path: Path) -> Space:
        """For detect's `ask_space`: this machine's /dev/shm."""
        assert path == self.root / "dev/shm"
        return self.shm


def v2_stat(*, anonymous: int = 0, inactive_file: int = 0, active_file: int = 0) -> str:
    rows: Mapping[str, int] = {
        "anon": anonymous,
        "file": inactive_file + active_file,
        "inactive_anon": anonymous,
        "active_anon": 0,
        "inactive_file": inactive_file,
        "active_file": active_file,
        "workingset_refault_file": 7,
    }
    return "\n".join(f"{key} {value}" for key, value in rows.items())


def docker_v1(root: Path) -> Machine:
    """`docker run -m 1g --cpus 1.5` on a v1 host: the mounts show only the container's own part."""
    machine = Machine(root)
    group = "/docker/4f1c"
    for controllers in V1:
        point = machine.v1(controllers, group, top=group)
        if controllers == "memory":
            machine.v1_memory(point, GIB, memsw=2 * GIB)
        elif controllers == "cpu,cpuacct":
            machine.v1_cpu(point, quota_us=150_000)
        elif controllers == "cpuset":
            machine.write(f"{point}/cpuset.cpus", "0-7")
        else:
            machine.write(f"{point}/pids.max", "2048")
    machine.shm = Space(size_bytes=64 * MIB, free_bytes=63 * MIB)
    return machine


def docker_v2(root: Path) -> Machine:
    """`docker run -m 2g --memory-swap 2g --cpus 2` on a v2 host: a cgroup namespace of its own, so our group is the root."""
    machine = Machine(root)
    machine.v2("/")
    machine.v2_group(
        "/sys/fs/cgroup",
        memory_max=2 * GIB,
        memory_high="max",
        memory_swap_max=0,
        memory_swap_current=0,
        memory_oom_group=0,
        cpu_max="200000 100000",
        cpuset_cpus_effective="0-7",
        pids_max="max",
    )
    machine.shm = Space(size_bytes=64 * MIB, free_bytes=64 * MIB)
    return machine


def kubernetes_v2(root: Path) -> Machine:
    """A container of a pod on v2: the kubelet sets memory.oom.group, and memory.high where MemoryQoS is on."""
    machine = Machine(root, memory_bytes=64 * GIB, processors=16)
    machine.v2("/")
    machine.v2_group(
        "/sys/fs/cgroup",
        memory_max=4 * GIB,
        memory_high=4 * GIB * 9 // 10,
        memory_swap_max=0,
        memory_oom_group=1,
        cpu_max="350000 100000",
        cpuset_cpus_effective="0-15",
        pids_max=4096,
    )
    machine.shm = Space(size_bytes=64 * MIB, free_bytes=64 * MIB)
    return machine


def kubernetes_v1(root: Path) -> Machine:
    """A container without a limit of its own in a pod that has one, seen from the pod's parent down."""
    machine = Machine(root, memory_bytes=64 * GIB, processors=16)
    pod, own = "/kubepods/burstable/pod7d1", "/kubepods/burstable/pod7d1/c0ffee"
    for controllers in V1:
        point = machine.v1(controllers, own)
        if controllers == "memory":
            machine.v1_memory(point, NO_LIMIT)
            machine.v1_memory(f"{point}/kubepods", 60 * GIB, usage=20 * GIB)
            machine.v1_memory(f"{point}/kubepods/burstable", NO_LIMIT)
            machine.v1_memory(point + pod, 3 * GIB, usage=700 * MIB)
            machine.v1_memory(point + own, NO_LIMIT)
        elif controllers == "cpu,cpuacct":
            for level, quota in (("", -1), ("/kubepods", -1), ("/kubepods/burstable", -1), (pod, 250_000), (own, -1)):
                machine.v1_cpu(point + level, quota_us=quota)
        elif controllers == "cpuset":
            machine.write(f"{point + own}/cpuset.effective_cpus", "0-15")
        else:
            machine.write(f"{point + own}/pids.max", "max")
    return machine


def systemd_slices(root: Path) -> Machine:
    """A service on a v2 host: only a slice two levels up limits, our own group says max."""
    machine = Machine(root, memory_bytes=32 * GIB)
    machine.v2("/system.slice/ml.slice/train.service")
    machine.v2_group("/sys/fs/cgroup/system.slice", memory_max="max", memory_high="max", memory_swap_max="max")
    machine.v2_group(
        "/sys/fs/cgroup/system.slice/ml.slice",
        memory_max=6 * GIB,
        memory_high="max",
        memory_current=2 * GIB,
        memory_swap_max=GIB,
        cpu_max="300000 100000",
        memory_oom_group=0,
    )
    machine.v2_group(
        "/sys/fs/cgroup/system.slice/ml.slice/train.service",
        memory_max="max",
        memory_high="max",
        memory_swap_max="max",
        cpu_max="max 100000",
        memory_oom_group=1,
        pids_max=512,
    )
    machine.meminfo(32 * GIB, swap=8 * GIB)
    return machine


def railway(root: Path) -> Machine:
    """The platform where this began: 8 GB, a quota of 8 and 64 processors in view."""
    machine = Machine(root, memory_bytes=256 * GIB, processors=64)
    machine.v2("/")
    machine.v2_group(
        "/sys/fs/cgroup",
        memory_max=8 * 10**9,
        memory_high="max",
        memory_swap_max=0,
        memory_oom_group=0,
        cpu_max="800000 100000",
        cpuset_cpus_effective="0-63",
        pids_max="max",
    )
    machine.shm = Space(size_bytes=64 * MIB, free_bytes=64 * MIB)
    return machine


def bare_metal(root: Path) -> Machine:
    """A login shell on a server: v2 groups everywhere, no limit anywhere."""
    machine = Machine(root, memory_bytes=128 * GIB, processors=32)
    machine.v2("/user.slice/user-1000.slice/session-3.scope")
    directory = "/sys/fs/cgroup"
    for part in ("user.slice", "user-1000.slice", "session-3.scope"):
        directory += f"/{part}"
        machine.v2_group(directory, memory_max="max", memory_high="max", memory_swap_max="max", cpu_max="max 100000")
    return machine


def hybrid(root: Path) -> Machine:
    """v1 controllers beside an empty v2 hierarchy; our memory group is nested, the others are at the root."""
    machine = Machine(root)
    for controllers in V1:
        point = machine.v1(controllers, "/api/69ea" if controllers == "memory" else "/")
        if controllers == "memory":
            machine.v1_memory(point, NO_LIMIT)
            machine.v1_memory(f"{point}/api", 12 * GIB, usage=3 * GIB)
            machine.v1_memory(f"{point}/api/69ea", 2 * GIB)
        elif controllers == "cpuset":
            machine.write(f"{point}/cpuset.effective_cpus", "0-7")
    machine.mount("/ /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw")
    machine.member("0::/")
    machine.write("/sys/fs/cgroup/unified/cgroup.controllers", "")
    return machine


def gvisor(root: Path) -> Machine:
    """A sandbox whose kernel imitates little: a meminfo as large as the container, no groups, no topology."""
    machine = Machine(root, memory_bytes=2 * GIB, processors=4, threads_per_core=1)
    for number in range(4):
        machine.remove(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    for name in ("/proc/cpuinfo", "/proc/self/limits", "/proc/sys/fs/nr_open", "/proc/self/status", "/proc/sys/kernel/pid_max"):
        machine.remove(name)
    return machine


MACHINES: Final[Mapping[str, Callable[[Path], Machine]]] = {
    build.__name__: build
    for build in (
        docker_v1,
        docker_v2,
        kubernetes_v2,
        kubernetes_v1,
        systemd_slices,
        railway,
        bare_metal,
        hybrid,
        gvisor,
    )
}
