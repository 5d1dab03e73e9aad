"""The values that `detect` returns. Bytes, seconds and cores; None means unknown or unlimited, as stated at the field."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from batchcal.core.values import Record

T = TypeVar("T")


class Candidate(Record):
    """One of the places that bound a number, whether or not it won."""

    value: float
    learned_from: str


class Fact(Record, Generic[T]):
    """A number, where it was learned, and why it won over the others."""

    value: T
    learned_from: str
    why: str = ""
    considered: tuple[Candidate, ...] = ()


class Cpu(Record):
    cores: Fact[float]
    """Cores' worth of time that the process may use; a quota of 1.5 stays 1.5."""
    logical: int
    """Logical processors in the affinity mask (after the cpuset)."""
    visible: int
    """Result of os.cpu_count(), which ignores the mask and the quota."""
    physical: int
    """Physical cores behind the mask."""
    quota_cores: float | None
    """None: no quota."""
    model: str
    architecture: str
    instructions: tuple[str, ...] = ()
    """Instruction sets by which kernels are chosen (AVX2, AVX-512, AMX, SVE, ...), sorted."""


class Memory(Record):
    limit: Fact[int]
    """Lowest bound, bytes: every group's limit (and memory.high) up to the root, RLIMIT_DATA, RLIMIT_AS, the machine. The two
    RLIMITs are for one process alone: memory of other processes does not count against them."""
    total_bytes: int
    available_bytes: int
    """MemAvailable of the machine."""
    used_bytes: int
    """Memory used in the binding group now and not reclaimable (anonymous + shared + kernel), this process included."""
    reclaimable_bytes: int
    """File cache charged to the binding group."""
    high_bytes: int | None
    """memory.high, above which the kernel throttles. None: not set."""
    swap_total_bytes: int
    swap_limit_bytes: int | None
    """None: not limited."""
    rlimit_data_bytes: int | None
    rlimit_as_bytes: int | None
    oom_group: bool | None
    """True: one kernel kill takes the whole container. None: unknown (cgroup v1 has no such switch)."""
    cgroup_version: Literal["v1", "v2", "none"]
    cgroup_path: str
    """Directory of the binding group, or of our own group if none binds. Empty without cgroups."""


class SharedMemory(Record):
    path: str
    size_bytes: int
    free_bytes: int


class Accelerator(Record):
    kind: Literal["cuda", "mps", "xpu", "other"]
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    """Free memory as reported by the device, so memory of other tenants is not free."""
    capability: str
    """Compute capability such as `9.0`. Empty: there is none."""
    mig: bool
    uuid: str = ""


class Software(Record):
    os: str
    """`Linux 6.18.44`."""
    libc: str
    python: str
    torch: str
    """Version from the metadata of the installed distribution. Empty: not installed."""
    cuda: str
    """Version of CUDA that torch was built with. Empty: none, or torch was not queried."""
    allocator_environment: dict[str, str]
    """Variables that change what an allocation costs: MALLOC_*, LD_PRELOAD, PYTORCH_ALLOC_CONF, THP_MEM_ALLOC_ENABLE, ..."""
    thread_environment: dict[str, str]
    """OMP_*, MKL_*, OPENBLAS_* and the like."""


class ThreadPool(Record):
    library: str
    threads: int
    version: str = ""


class Advice(Record):
    code: str
    """`shm-small`, `quota-below-cores`, `omp-left-behind`, `oom-group`, ... Stable."""
    text: str
    try_: str = ""


class Environment(Record):
    cpu: Cpu
    memory: Memory
    shared_memory: SharedMemory | None
    open_files: Fact[int]
    pids: Fact[int] | None
    """None: unlimited."""
    accelerators: tuple[Accelerator, ...] = ()
    accelerators_asked: bool = False
    """False: torch was not queried, so `accelerators` is empty."""
    software: Software
    thread_pools: tuple[ThreadPool, ...] = ()
    advice: tuple[Advice, ...] = ()
    optimal_threads: int
    """Initial number of intra-op threads: physical cores within the quota, at least 1."""
    optimal_workers: int
    """Initial number of DataLoader workers: 0 up to two cores, else at most half of the cores above two."""
    notes: tuple[str, ...] = ()
    """Values that could not be read, and the assumptions used instead."""
