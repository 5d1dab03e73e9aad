"""What will hurt is said; what will not is not."""

from __future__ import annotations

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.detect.advice import advise
from batchcal.detect.environment import Accelerator, Cpu, Environment, Fact, Memory, SharedMemory, Software

CALM = Environment(
    cpu=Cpu(
        cores=Fact[float](value=8.0, learned_from="mask"),
        logical=8,
        visible=8,
        physical=4,
        quota_cores=None,
        model="one",
        architecture="x86_64",
    ),
    memory=Memory(
        limit=Fact[int](value=8 * GIB, learned_from="file"),
        total_bytes=64 * GIB,
        available_bytes=32 * GIB,
        used_bytes=GIB,
        reclaimable_bytes=0,
        high_bytes=None,
        swap_total_bytes=0,
        swap_limit_bytes=None,
        rlimit_data_bytes=None,
        rlimit_as_bytes=None,
        oom_group=False,
        cgroup_version="v2",
        cgroup_path="/sys/fs/cgroup",
    ),
    shared_memory=SharedMemory(path="/dev/shm", size_bytes=4 * GIB, free_bytes=4 * GIB),
    open_files=Fact[int](value=65536, learned_from="RLIMIT_NOFILE"),
    pids=Fact[int](value=4096, learned_from="pids.max"),
    software=Software(
        os="Linux 6.8",
        libc="glibc 2.36",
        python="3.11.7",
        torch="2.13.0",
        cuda="",
        allocator_environment={"LD_PRELOAD": "/lib/libtcmalloc_minimal.so.4"},
        thread_environment={},
    ),
    optimal_threads=4,
    optimal_workers=3,
)
CARD = Accelerator(
    kind="cuda", index=0, name="NVIDIA H200", total_bytes=80 * GIB, free_bytes=79 * GIB, capability="9.0", mig=False
)


def codes(environment: Environment, allocators: frozenset[str] = frozenset({"tcmalloc"})) -> list[str]:
    return [advice.code for advice in advise(environment, allocators)]


def with_memory(**values: object) -> Environment:
    return CALM.model_copy(update={"memory": CALM.memory.model_copy(update=values)})


def with_variables(**values: str) -> Environment:
    return CALM.model_copy(update={"software": CALM.software.model_copy(update={"thread_environment": values})})


def test_a_machine_without_trouble_gets_no_advice() -> None:
    assert codes(CALM) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"oom_group": True}, ["oom-group"]),
        ({"oom_group": None}, []),
        ({"high_bytes": 7 * GIB}, ["memory-high"]),
        ({"high_bytes": 128 * GIB}, []),
        ({"available_bytes": 5 * GIB}, ["machine-short"]),
        ({"swap_total_bytes": GIB}, ["swap-on"]),
        ({"swap_total_bytes": GIB, "swap_limit_bytes": 0}, []),
        ({"rlimit_as_bytes": GIB, "rlimit_data_bytes": GIB}, ["rlimit-set", "rlimit-set"]),
    ],
)
def test_memory_settings_that_cause_problems_produce_advice(values: dict[str, object], expected: list[str]) -> None:
    assert codes(with_memory(**values)) == expected


@pytest.mark.parametrize(("size", "words"), [(64 * MIB, "Bus error"), (512 * MIB, "large batches"), (2 * GIB, "")])
def test_small_shared_memory_produces_advice(size: int, words: str) -> None:
    shm = SharedMemory(path="/dev/shm", size_bytes=size, free_bytes=size)
    found = advise(CALM.model_copy(update={"shared_memory": shm}), frozenset({"tcmalloc"}))
    assert [advice.code for advice in found] == (["shm-small"] if words else [])
    assert all(words in advice.text and "--shm-size" in advice.try_ for advice in found)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, ["omp-left-behind"]),
        ({"OMP_NUM_THREADS": "1,2"}, ["omp-left-behind"]),
        ({"OMP_NUM_THREADS": "4"}, []),
        ({"OMP_NUM_THREADS": "16"}, ["omp-above-cores"]),
        ({"OMP_NUM_THREADS": "lots"}, []),
        ({"LOCAL_WORLD_SIZE": "2"}, ["ranks-share"]),
        ({"LOCAL_WORLD_SIZE": "1"}, []),
    ],
)
def test_thread_variables_set_by_launchers_produce_advice(variables: dict[str, str], expected: list[str]) -> None:
    assert codes(with_variables(**variables)) == expected


def test_one_thread_on_one_core_produces_no_thread_advice() -> None:
    cpu = CALM.cpu.model_copy(update={"cores": Fact[float](value=1.5, learned_from="cpu.max"), "quota_cores": 1.5})
    found = codes(with_variables(OMP_NUM_THREADS="1").model_copy(update={"cpu": cpu}))
    assert found == ["quota-below-cores"]


def test_a_quota_above_the_affinity_mask_produces_no_advice() -> None:
    assert codes(CALM.model_copy(update={"cpu": CALM.cpu.model_copy(update={"quota_cores": 8.0})})) == []


def test_low_limits_of_files_and_processes_produce_advice() -> None:
    few = {
        "open_files": Fact[int](value=1024, learned_from="RLIMIT_NOFILE"),
        "pids": Fact[int](value=100, learned_from="pids.max"),
    }
    assert codes(CALM.model_copy(update=few)) == ["open-files-low", "pids-low"]
    assert codes(CALM.model_copy(update={"pids": None, "shared_memory": None})) == []


def test_a_device_used_by_other_processes_produces_advice() -> None:
    taken = CARD.model_copy(update={"free_bytes": 50 * GIB})
    assert codes(CALM.model_copy(update={"accelerators": (CARD, taken)})) == ["device-shared"]


def test_allocator_advice_is_given_only_without_an_accelerator_on_glibc() -> None:
    software = CALM.software.model_copy(update={"allocator_environment": {}})
    plain = CALM.model_copy(update={"software": software})
    assert codes(plain) == ["tcmalloc-unused"]
    assert codes(plain, frozenset()) == ["tcmalloc-missing"]
    assert codes(plain.model_copy(update={"accelerators": (CARD,)}), frozenset()) == []
    assert codes(plain.model_copy(update={"software": software.model_copy(update={"libc": "musl 1.2"})}), frozenset()) == []


def test_malloc_environment_variables_are_named_in_the_advice() -> None:
    variables = {**CALM.software.allocator_environment, "MALLOC_ARENA_MAX": "2"}
    found = advise(
        CALM.model_copy(update={"software": CALM.software.model_copy(update={"allocator_environment": variables})}),
        frozenset({"tcmalloc"}),
    )
    assert [advice.code for advice in found] == ["malloc-environment"]
    assert found[0].try_.startswith("unset MALLOC_ARENA_MAX")
