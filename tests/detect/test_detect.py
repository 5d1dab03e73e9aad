"""detect as a whole: when torch is asked, what the one line says, and the truth of this very machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import proclimits
import psutil
import pytest

import batchcal.detect
from batchcal.core.errors import GuardError
from batchcal.core.progress import key_values
from batchcal.core.units import GIB, MIB
from batchcal.detect import software, thread_pools
from batchcal.detect.detect import detect
from batchcal.detect.environment import Accelerator, Environment, ThreadPool
from batchcal.detect.summary import EVENT, summary
from batchcal.detect.torch_answer import TorchAnswer
from tests.support import machines
from tests.support.cgroups import memory_cgroup
from tests.support.machines import Machine

CARD = Accelerator(kind="cuda", index=0, name="H200", total_bytes=GIB, free_bytes=GIB, capability="9.0", mig=False)
ANSWER = TorchAnswer(accelerators=(CARD,), thread_pools=(ThreadPool(library="libgomp", threads=2),), cuda="12.8")


def never() -> NoReturn:
    pytest.fail("torch was queried")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what is installed: which torch, and whether threadpoolctl is."""

    def install(torch: str, *, threadpoolctl: bool = False) -> None:
        monkeypatch.setattr(software, "version_of", lambda distribution: torch)
        monkeypatch.setattr(thread_pools, "can_query", lambda: threadpoolctl)

    return install


def card_in(root: Path) -> Machine:
    machine = machines.docker_v2(root)
    machine.write("/dev/nvidia0", "")
    return machine


def test_torch_is_queried_if_a_driver_is_present(tmp_path: Path, installed: Callable[..., None]) -> None:
    installed("2.13.0")
    found = detect(root=card_in(tmp_path).root, environ={}, ask_child=lambda: ANSWER)
    assert (found.accelerators, found.accelerators_asked, found.software.cuda) == ((CARD,), True, "12.8")
    assert found.thread_pools == ANSWER.thread_pools


def test_torch_is_not_queried_without_a_driver_or_an_accelerator_build(tmp_path: Path, installed: Callable[..., None]) -> None:
    installed("2.13.0")
    assert not detect(root=tmp_path / "none", environ={}, ask_child=never).accelerators_asked
    installed("2.13.0+cpu")
    found = detect(root=card_in(tmp_path).root, environ={}, ask_child=never)
    assert not found.accelerators_asked
    assert "built for the CPU only" in " ".join(found.notes)
    installed("")
    detect(root=tmp_path, environ={}, ask_child=never)


def test_torch_is_queried_for_thread_pools_if_threadpoolctl_is_installed(tmp_path: Path, installed: Callable[..., None]) -> None:
    installed("2.13.0+cpu", threadpoolctl=True)
    assert detect(root=tmp_path, environ={}, ask_child=lambda: ANSWER).thread_pools


def test_a_failed_torch_query_is_a_note_and_not_an_error(tmp_path: Path, installed: Callable[..., None]) -> None:
    installed("2.13.0")

    def fail() -> TorchAnswer:
        raise GuardError("no answer", known="it died")

    found = detect(root=card_in(tmp_path).root, environ={}, ask_child=fail)
    assert not found.accelerators_asked
    assert "torch could not be queried for accelerators: no answer (it died)" in found.notes


def test_a_device_that_does_not_answer_is_a_note(tmp_path: Path, installed: Callable[..., None]) -> None:
    installed("2.13.0")
    found = detect(root=card_in(tmp_path).root, environ={}, ask_child=lambda: TorchAnswer(problems=("cuda:0 is away",)))
    assert found.accelerators_asked
    assert "cuda:0 is away" in found.notes


def test_the_resource_limits_line_has_the_documented_fields(tmp_path: Path) -> None:
    machine = machines.docker_v1(tmp_path)
    found = detect(root=tmp_path, environ={}, ask_space=machine.ask_space)
    line = key_values(EVENT, summary(found, max_batch_size=512))
    start = "resource_limits cpu_cores=1.5 memory_mb=1024 optimal_threads=1 optimal_workers=0 max_batch_size=512 "
    assert line == start + "memory_used_mb=190 shm_mb=64 open_files=1048576 pids=2048"
    assert "max_batch_size" not in key_values(EVENT, summary(found))


def test_the_detect_module_can_be_called_like_the_detect_function(tmp_path: Path) -> None:
    machines.docker_v2(tmp_path)
    room = sys.modules["batchcal.detect"]
    assert callable(room)
    assert room(root=tmp_path, environ={}) == detect(root=tmp_path, environ={})
    assert batchcal.detect.__doc__


@pytest.mark.child
def test_detecting_starts_no_process() -> None:
    code = """
import subprocess
def refuse(*args, **kwargs):
    raise SystemExit("a process was started")
subprocess.Popen.__init__ = refuse
from batchcal.detect.detect import detect
detect()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


ASK = """
import json, proclimits
from batchcal.detect.detect import detect
budget = proclimits.get_memory_budget()
print(json.dumps({
    "ours": detect().model_dump(mode="json"),
    "limit": budget and budget.limit,
    "used": budget and budget.used,
    "level": proclimits.describe().memory_limit_level,
    "cores": proclimits.get_cpu_limit(),
}))
"""


def test_detect_matches_an_independent_reader_on_this_machine() -> None:
    found = detect(environ={})
    budget = proclimits.get_memory_budget()
    assert proclimits.get_machine_memory_bytes() == found.memory.total_bytes == psutil.virtual_memory().total
    assert found.memory.limit.value == (budget.limit if budget else found.memory.total_bytes)
    assert min(proclimits.get_cpu_limit() or found.cpu.visible, found.cpu.logical) == found.cpu.cores.value
    assert found.cpu.visible == proclimits.get_machine_cpu_count()


@pytest.mark.cgroup
@pytest.mark.parametrize("nested", [False, True])
def test_detect_matches_an_independent_reader_in_a_real_cgroup(nested: bool) -> None:
    with memory_cgroup(300 * MIB) as limiting, memory_cgroup(200 * GIB if nested else None, parent=limiting) as own:
        done = own.run([sys.executable, "-c", ASK])
        assert done.returncode == 0, done.stderr
        reply = json.loads(done.stdout)
    ours = Environment.model_validate(reply["ours"])
    assert ours.memory.limit.value == reply["limit"] == 300 * MIB
    assert ours.memory.cgroup_path == reply["level"] == str(limiting.path)
    assert ours.memory.limit.learned_from == f"{limiting.path}/memory.limit_in_bytes"
    assert ours.memory.cgroup_version == "v1"
    assert ours.memory.swap_limit_bytes == 0
    # proclimits counts active file pages as used, we do not.
    assert reply["used"] - 16 * MIB < ours.memory.used_bytes <= reply["used"] + MIB
