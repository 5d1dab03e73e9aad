"""The fingerprint is the same on the same kind of machine and another on another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from batchcal.core.units import GIB
from batchcal.detect.detect import detect
from batchcal.detect.environment import Accelerator, Cpu, Software
from batchcal.detect.fingerprint import (
    accelerator_digest,
    allocator_digests,
    cpu_digest,
    os_digest,
    python_digest,
    torch_digest,
)
from batchcal.detect.torch_answer import TorchAnswer
from batchcal.machine.allocator import AllocatorPolicy, available
from batchcal.machine.roots import Root
from tests.support import machines
from tests.support.machines import Machine

SOFTWARE = Software(
    os="Linux 6.8.0-45-generic",
    libc="glibc 2.36",
    python="3.11.7",
    torch="2.13.0",
    cuda="",
    allocator_environment={},
    thread_environment={},
)


def cpu_in(root: Path) -> Cpu:
    return detect(root=root, environ={}).cpu


def with_environment(**values: str) -> Software:
    return SOFTWARE.model_copy(update={"allocator_environment": values})


def never() -> NoReturn:
    pytest.fail("torch was queried")


def test_the_fingerprint_parts_are_distinct_sha256_digests() -> None:
    parts = [os_digest(SOFTWARE), python_digest(SOFTWARE), torch_digest(SOFTWARE), accelerator_digest(SOFTWARE, {})]
    assert all(len(part) == 64 and int(part, 16) >= 0 for part in parts)
    assert len(set(parts)) == 4


def test_other_processors_of_the_same_kind_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.processors(8, 2, mask="0,1,4,5")
    before = cpu_digest(cpu_in(tmp_path))
    machine.processors(8, 2, mask="2,3,6,7")
    assert cpu_digest(cpu_in(tmp_path)) == before
    machine.processors(8, 2, mask="0,1,2,3")  # four whole cores instead of two
    assert cpu_digest(cpu_in(tmp_path)) != before


def test_another_cpu_quota_or_model_changes_the_fingerprint(tmp_path: Path) -> None:
    machine = machines.docker_v2(tmp_path)
    before = cpu_digest(cpu_in(tmp_path))
    machine.write("/sys/fs/cgroup/cpu.max", "150000 100000")
    fewer = cpu_digest(cpu_in(tmp_path))
    machine.write("/proc/cpuinfo", "processor : 0\nmodel name : AMD EPYC 9R14")
    assert len({before, fewer, cpu_digest(cpu_in(tmp_path))}) == 3


@pytest.mark.parametrize(
    ("digest", "values", "same"),
    [
        (os_digest, {"os": "Linux 6.8.12-99"}, True),
        (os_digest, {"os": "Linux 6.9.0"}, False),
        (os_digest, {"os": "Darwin 24.1.0"}, False),
        (os_digest, {"libc": "glibc 2.39"}, False),
        (python_digest, {"python": "3.11.8"}, False),
        (python_digest, {"os": "Linux 5.15"}, True),
        (torch_digest, {"torch": "2.14.0"}, False),
        (torch_digest, {"cuda": "12.8"}, True),  # known only where torch was asked
        (torch_digest, {"thread_environment": {"OMP_NUM_THREADS": "1"}}, True),
    ],
)
def test_each_fingerprint_part_changes_only_with_its_own_facts(
    digest: Callable[[Software], str], values: dict[str, object], same: bool
) -> None:
    assert (digest(SOFTWARE.model_copy(update=values)) == digest(SOFTWARE)) == same


def test_an_allocator_policy_does_not_change_the_torch_digest() -> None:
    policies = [
        *available(),
        AllocatorPolicy(name="thp", kind="environment"),
        AllocatorPolicy(name="tcmalloc", kind="preload", library="/lib/libtcmalloc.so.4"),
        AllocatorPolicy(name="/opt/liballoc.so", kind="preload", library="/opt/liballoc.so"),
    ]
    for policy in policies:
        assert torch_digest(with_environment(**policy.environment({}))) == torch_digest(SOFTWARE)
    assert torch_digest(with_environment(MALLOC_ARENA_MAX="2")) != torch_digest(SOFTWARE)


def test_a_cpu_build_of_torch_has_no_accelerator_even_with_a_driver(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    none = accelerator_digest(SOFTWARE, {}, root=Root(tmp_path), query=never)
    machine.write("/dev/kfd", "")
    cpu_build = SOFTWARE.model_copy(update={"torch": "2.13.0+cpu"})
    assert accelerator_digest(cpu_build, {}, root=Root(tmp_path), query=never) == none


def test_torch_is_queried_only_if_driver_files_do_not_identify_the_device(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write("/dev/kfd", "")
    root = Root(tmp_path)

    def answer(free: int = 60, total: int = 64) -> TorchAnswer:
        device = Accelerator(
            kind="cuda",
            index=0,
            name="AMD Instinct MI300X",
            total_bytes=total * GIB,
            free_bytes=free * GIB,
            capability="9.4",
            mig=False,
            uuid="GPU-1",
        )
        return TorchAnswer(accelerators=(device,))

    asked = accelerator_digest(SOFTWARE, {}, root=root, query=answer)
    assert asked == accelerator_digest(SOFTWARE, {}, root=root, query=lambda: answer(free=1))
    assert asked != accelerator_digest(SOFTWARE, {}, root=root, query=lambda: answer(total=192))
    assert asked != accelerator_digest(SOFTWARE, {}, root=root)

    machine.remove("/dev/kfd")
    machine.write("/dev/nvidia0", "")
    machine.write("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue")
    machine.write("/proc/driver/nvidia/gpus/0/information", "Model: NVIDIA H200")
    known = accelerator_digest(SOFTWARE, {}, root=root, query=never)
    machine.write("/proc/driver/nvidia/gpus/0/information", "Model: NVIDIA H100")
    assert accelerator_digest(SOFTWARE, {}, root=root, query=never) != known


def test_policies_with_a_library_include_its_digest(tmp_path: Path) -> None:
    library = tmp_path / "libtcmalloc.so.4"
    library.write_bytes(b"one")
    policies = (
        AllocatorPolicy(name="default", kind="none"),
        AllocatorPolicy(name="tcmalloc", kind="preload", library=str(library)),
    )
    before = allocator_digests(policies)
    assert list(before) == ["tcmalloc"]
    library.write_bytes(b"two")
    assert allocator_digests(policies) != before
