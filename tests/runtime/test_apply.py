"""What a plan puts into force. Each case in a process of its own: threads and allocators are set once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.core.errors import UsageError
from batchcal.machine.allocator import PolicyName, available
from batchcal.runtime.apply import apply, reexec_for
from tests.support.plans import a_plan

pytestmark = pytest.mark.child

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys, warnings
sys.path.insert(0, {root!r})
from batchcal.runtime.apply import apply, reexec_for
from batchcal.machine.allocator import in_force
from tests.support.plans import a_plan
print("start", os.getpid(), *sys.argv[1:])
plan = a_plan(8, allocator={allocator!r}, intra_op_threads=2, interop_threads=3)
{call}
"""


def run(call: str, *, allocator: str = "default", arguments: tuple[str, ...] = (), **environment: str) -> list[str]:
    code = SCRIPT.format(root=str(ROOT), allocator=allocator, call=call)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ) | environment,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def has(name: PolicyName) -> bool:
    return name in {policy.name for policy in available()}


def test_apply_sets_the_thread_counts() -> None:
    *_, seen = run("apply(plan); import torch; print(torch.get_num_threads(), torch.get_num_interop_threads())")
    assert seen == "2 3"


@pytest.mark.skipif(not has("retain"), reason="needs glibc")
def test_the_retain_policy_takes_effect_without_a_restart() -> None:
    start, seen = run("reexec_for(plan); applied = apply(plan); print(applied, in_force())", allocator="retain")
    assert start.startswith("start")
    assert seen == "Applied(allocator='retain', notices=()) retain"


@pytest.mark.skipif(not has("thp"), reason="needs transparent huge pages")
def test_a_policy_that_needs_a_restart_keeps_the_command_and_the_process_id() -> None:
    lines = run(
        "reexec_for(plan); applied = apply(plan); print(applied.allocator, len(applied.notices))",
        allocator="thp",
        arguments=("--epochs", "two words"),
    )
    first, second, seen = lines
    assert first == second
    assert first.endswith("--epochs two words")
    assert seen == "thp 0"


@pytest.mark.skipif(not has("thp"), reason="needs transparent huge pages")
def test_a_missing_restart_warns_that_another_allocator_is_active() -> None:
    _, seen = run(
        "warnings.simplefilter('error'); print(end='')\ntry: apply(plan)\nexcept UserWarning as warning: print(warning)",
        allocator="thp",
    )
    assert "measured with the allocator thp, but this process runs with default" in seen
    assert "batchcal exec" in seen


@pytest.mark.skipif(not has("thp"), reason="needs transparent huge pages")
def test_a_plan_for_the_default_allocator_restarts_without_allocator_variables() -> None:
    first, second, seen = run("reexec_for(plan); print(in_force())", THP_MEM_ALLOC_ENABLE="1")
    assert first == second
    assert seen == "default"


def test_a_policy_that_never_takes_effect_restarts_the_process_only_once() -> None:
    # The policy can be resolved but is never in force: the new process takes its own mark for an answer.
    never = (
        "import batchcal.runtime.apply as module\n"
        "module.in_force = lambda: 'something else'\n"
        "module.reexec_for(plan); print('went on')"
    )
    lines = run(never)
    assert [line.split()[0] for line in lines] == ["start", "start", "went"]


def test_a_restarted_parent_does_not_prevent_the_restart_of_a_child() -> None:
    lines = run("reexec_for(plan); print(in_force())", THP_MEM_ALLOC_ENABLE="1", BATCHCAL_REEXEC="1:default")
    assert lines[-1] == "default"


def test_a_plan_with_an_unavailable_allocator_is_rejected() -> None:
    plan = a_plan(8, allocator="/no/such/libhoard.so")
    with pytest.raises(UsageError, match="libhoard"):
        reexec_for(plan)
    with pytest.raises(UsageError, match="libhoard"):
        apply(plan)
