"""How many bytes a training may use."""

from __future__ import annotations

import pytest

from batchcal.core.errors import UsageError
from batchcal.core.units import GIB, MIB
from batchcal.detect.environment import Environment, Memory
from batchcal.machine.meters import ProcessMemory
from batchcal.measure.budget import accelerator_budget, host_budget
from tests.support.calibrations import an_environment
from tests.support.probes import an_accelerator


@pytest.fixture(autouse=True)
def small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process holds 50 MiB, whatever pytest takes."""
    monkeypatch.setattr("batchcal.measure.budget.read_status", lambda: ProcessMemory(anonymous_bytes=50 * MIB))


def machine(
    *, limit: int, used: int = 50 * MIB, available: int = 20 * GIB, learned_from: str = "/sys/fs/cgroup/memory.max"
) -> Environment:
    there = an_environment()
    fact = there.memory.limit.model_copy(update={"value": limit, "learned_from": learned_from})
    memory = there.memory.model_copy(update={"limit": fact, "used_bytes": used, "available_bytes": available})
    assert isinstance(memory, Memory)
    return there.model_copy(update={"memory": memory})


def test_the_budget_is_the_limit_minus_other_processes_minus_the_margin() -> None:
    budget = host_budget(machine(limit=1000 * MIB, used=150 * MIB), margin=0.15, memory_limit_bytes=None)
    assert budget.others_bytes == 100 * MIB  # our own 50 are not there during training
    assert budget.margin_bytes == 150 * MIB
    assert budget.budget_bytes == 750 * MIB
    assert budget.learned_from == "/sys/fs/cgroup/memory.max"


def test_memory_of_an_unreadable_own_process_counts_as_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcal.measure.budget.read_status", lambda: None)
    budget = host_budget(machine(limit=1000 * MIB, used=150 * MIB), margin=0.0, memory_limit_bytes=None)
    assert budget.budget_bytes == 850 * MIB


def test_memory_of_other_processes_is_never_negative() -> None:
    budget = host_budget(machine(limit=1000 * MIB, used=10 * MIB), margin=0.0, memory_limit_bytes=None)
    assert budget.others_bytes == 0
    assert budget.budget_bytes == 1000 * MIB


def test_other_processes_do_not_lower_a_limit_of_this_process() -> None:
    here = machine(limit=1000 * MIB, used=700 * MIB, learned_from="RLIMIT_DATA")
    budget = host_budget(here, margin=0.1, memory_limit_bytes=None)
    assert budget.others_bytes == 0
    assert budget.budget_bytes == 900 * MIB


def test_available_memory_of_the_machine_limits_the_budget() -> None:
    budget = host_budget(machine(limit=1000 * MIB, available=600 * MIB), margin=0.1, memory_limit_bytes=None)
    assert budget.budget_bytes == 500 * MIB


def test_a_budget_is_never_negative() -> None:
    budget = host_budget(machine(limit=1000 * MIB, used=2000 * MIB), margin=0.1, memory_limit_bytes=None)
    assert budget.budget_bytes == 0


def test_a_memory_limit_below_the_machine_limit_is_for_training_only() -> None:
    budget = host_budget(machine(limit=4 * GIB, used=1 * GIB), margin=0.1, memory_limit_bytes=2000 * MIB)
    assert budget.budget_bytes == 1800 * MIB
    assert budget.limit_bytes == 2000 * MIB
    assert budget.learned_from == "--memory-limit"


def test_a_memory_limit_above_the_free_memory_is_not_used() -> None:
    budget = host_budget(machine(limit=4 * GIB, used=3 * GIB), margin=0.1, memory_limit_bytes=2000 * MIB)
    assert budget.budget_bytes < 1000 * MIB
    assert budget.learned_from == "/sys/fs/cgroup/memory.max"


def test_a_memory_limit_above_the_machine_limit_is_rejected() -> None:
    with pytest.raises(UsageError) as raised:
        host_budget(machine(limit=1 * GIB), margin=0.1, memory_limit_bytes=2 * GIB)
    assert "2.00 GiB" in raised.value.what
    assert "1.00 GiB (/sys/fs/cgroup/memory.max)" in raised.value.known
    assert raised.value.try_


def test_used_accelerator_memory_counts_as_other_processes() -> None:
    budget = accelerator_budget(an_accelerator(total_bytes=10 * GIB, free_bytes=7 * GIB), "cuda:0", margin=0.1)
    assert (budget.device, budget.limit_bytes) == ("cuda:0", 10 * GIB)
    assert (budget.others_bytes, budget.margin_bytes, budget.budget_bytes) == (3 * GIB, GIB, 6 * GIB)


def test_a_full_accelerator_has_no_budget() -> None:
    assert accelerator_budget(an_accelerator(free_bytes=1), "cuda:0", margin=0.1).budget_bytes == 0
