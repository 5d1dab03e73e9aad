"""Problems of a training on this machine, and their remedies. Pure: derived from detected values, nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from batchcal.core.units import GIB, MIB, format_bytes
from batchcal.detect.environment import Advice, Environment

SMALL_SHM_BYTES: Final = 64 * MIB
"""Docker's default. torch's workers pass every batch through /dev/shm."""
TIGHT_SHM_BYTES: Final = GIB
FEW_OPEN_FILES: Final = 4096
"""Each tensor that a worker passes on holds a descriptor in both processes until it is read."""
FEW_PIDS: Final = 256
OTHERS_ON_DEVICE: Final = 0.10
"""Used fraction of the device above which others must hold memory: our own CUDA context takes less than 1 GiB."""


def advise(environment: Environment, allocators: frozenset[str]) -> tuple[Advice, ...]:
    """Return all advice that applies, the most harmful first. `allocators` are the names of the policies that this system has."""
    advice: list[Advice] = []
    for rule in _RULES:
        advice.extend(rule(environment))
    advice.extend(_allocators(environment, allocators))
    return tuple(advice)


def _out_of_memory(environment: Environment) -> Iterator[Advice]:
    memory = environment.memory
    if memory.oom_group:
        yield Advice(
            code="oom-group",
            text="memory.oom.group is set: if memory runs out, the kernel kills the complete container, not one process",
            try_="stay within the plan; in Kubernetes 1.32 or later, set singleProcessOOMKill: true for the kubelet",
        )
    if memory.high_bytes is not None and memory.high_bytes < memory.total_bytes:
        yield Advice(
            code="memory-high",
            text=f"memory.high is {format_bytes(memory.high_bytes)}: above it, the kernel slows the group down, "
            "and does not end a process",
            try_="raise memory.high to memory.max (systemd: MemoryHigh=infinity), or keep the plan below it",
        )
    free = memory.limit.value - memory.used_bytes
    if memory.available_bytes < free * 0.95:
        yield Advice(
            code="machine-short",
            text=f"the limit leaves {format_bytes(free)}, but only {format_bytes(memory.available_bytes)} are available: "
            "other processes on the machine use the rest",
            try_=f"batchcal calibrate --memory-limit {format_bytes(memory.available_bytes).replace(' ', '')}",
        )
    if memory.swap_total_bytes and memory.swap_limit_bytes != 0:
        yield Advice(
            code="swap-on",
            text=f"{format_bytes(memory.swap_total_bytes)} of swap: a batch that is too large becomes slow instead of failing",
            try_="docker run --memory-swap with the value of --memory; systemd: MemorySwapMax=0",
        )
    limits = {"RLIMIT_DATA": memory.rlimit_data_bytes, "RLIMIT_AS": memory.rlimit_as_bytes}
    for name, limit in limits.items():
        if limit is not None:
            yield Advice(
                code="rlimit-set",
                text=f"{name} is {format_bytes(limit)} for each process, and memory that is only reserved counts too",
                try_="limit the container's memory instead" + (" (ulimit -v unlimited)" if name == "RLIMIT_AS" else ""),
            )


def _shared_memory(environment: Environment) -> Iterator[Advice]:
    shm = environment.shared_memory
    if shm is not None and shm.size_bytes < TIGHT_SHM_BYTES:
        effect = "DataLoader workers may crash (Bus error)" if shm.size_bytes <= SMALL_SHM_BYTES else "large batches may fill it"
        yield Advice(
            code="shm-small",
            text=f"{shm.path} has only {format_bytes(shm.size_bytes)}: {effect}",
            try_="docker run --shm-size=2g; Kubernetes: an emptyDir with medium: Memory at /dev/shm; or --workers 0",
        )


def _processors(environment: Environment) -> Iterator[Advice]:
    cpu, threads = environment.cpu, environment.optimal_threads
    if cpu.quota_cores is not None and cpu.quota_cores < cpu.logical:
        yield Advice(
            code="quota-below-cores",
            text=f"the quota is {cpu.quota_cores:g} cores, but {cpu.logical} processors are visible: "
            f"libraries start {cpu.logical} threads, and the scheduler pauses all of them when the quota is used up",
            try_=f"OMP_NUM_THREADS={threads}, or use the threads of the plan",
        )
    requested = environment.software.thread_environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if requested == "1" and cpu.cores.value >= 2:
        yield Advice(
            code="omp-left-behind",
            text=f"OMP_NUM_THREADS=1 leaves {cpu.cores.value - 1:g} of {cpu.cores.value:g} cores idle; "
            "torchrun and some launchers set it if it is not set",
            try_=f"OMP_NUM_THREADS={threads} for one process on this machine",
        )
    elif requested.isdigit() and int(requested) > cpu.cores.value:
        yield Advice(
            code="omp-above-cores",
            text=f"OMP_NUM_THREADS={requested} is more than the {cpu.cores.value:g} cores that this process may use",
            try_=f"OMP_NUM_THREADS={threads}",
        )
    ranks = environment.software.thread_environment.get("LOCAL_WORLD_SIZE", "")
    if ranks.isdigit() and int(ranks) > 1:
        yield Advice(
            code="ranks-share",
            text=f"{ranks} ranks on this machine share its cores, memory and /dev/shm: the numbers are for all ranks together",
        )


def _limits(environment: Environment) -> Iterator[Advice]:
    files = environment.open_files
    if files.value < FEW_OPEN_FILES:
        yield Advice(
            code="open-files-low",
            text=f"a process may open only {files.value} files: workers with many tensors may need more (Too many open files)",
            try_="ulimit -n 65536; docker run --ulimit nofile=65536",
        )
    pids = environment.pids
    if pids is not None and pids.value < FEW_PIDS:
        yield Advice(
            code="pids-low",
            text=f"only {pids.value} processes and threads are allowed: workers or their threads may fail to start",
            try_="docker run --pids-limit=4096",
        )


def _accelerators(environment: Environment) -> Iterator[Advice]:
    for device in environment.accelerators:
        used_bytes = device.total_bytes - device.free_bytes
        name = f"{device.kind}:{device.index} ({device.name})"
        if used_bytes > OTHERS_ON_DEVICE * device.total_bytes:
            yield Advice(
                code="device-shared",
                text=f"{name}: {format_bytes(used_bytes)} of {format_bytes(device.total_bytes)} are already used",
                try_="stop the other processes on this device, or let them run during calibration and training",
            )


def _environment_variables(environment: Environment) -> Iterator[Advice]:
    names = [name for name in environment.software.allocator_environment if name.startswith("MALLOC_")]
    if names:
        yield Advice(
            code="malloc-environment",
            text=f"{', '.join(names)} affects memory and speed: use the same value for training",
            try_=f"unset {' '.join(names)}, and use --allocator instead",
        )


def _allocators(environment: Environment, allocators: frozenset[str]) -> Iterator[Advice]:
    # With an accelerator, the batch is in the memory of the device. The host's allocator then matters little.
    if environment.accelerators or not environment.software.libc.startswith("glibc"):
        return
    if "tcmalloc" in allocators:
        if "tcmalloc" not in environment.software.allocator_environment.get("LD_PRELOAD", ""):
            yield Advice(
                code="tcmalloc-unused",
                text="tcmalloc is installed but not used: on a CPU, it was 1.2 to 4 times as fast as glibc",
                try_="batchcal calibrate --allocator tcmalloc",
            )
    else:
        yield Advice(
            code="tcmalloc-missing",
            text="glibc returns large blocks to the kernel at every step: on a CPU, tcmalloc was 1.2 to 4 times as fast",
            try_="apt-get install libtcmalloc-minimal4 (conda, Fedora: gperftools), then --allocator tcmalloc",
        )


_RULES: Final[tuple[Callable[[Environment], Iterator[Advice]], ...]] = (
    _out_of_memory,
    _shared_memory,
    _processors,
    _limits,
    _accelerators,
    _environment_variables,
)
