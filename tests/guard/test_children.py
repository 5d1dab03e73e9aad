"""Real children: whatever they do, the parent learns one outcome and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from batchcal.core.errors import GuardError
from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.launch import Launcher
from batchcal.guard.outcome import (
    Fits,
    KilledFromOutside,
    Outcome,
    OutOfMemory,
    Peak,
    TimedOut,
    UserCodeFailed,
)
from batchcal.guard.run import ChildLimits
from tests.support.guarded import ending_of, job, launcher

pytestmark = pytest.mark.child

MIB = 1 << 20


@pytest.fixture(scope="module", params=["zygote", "spawn"])
def opened(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    kind: Literal["zygote", "spawn"] = "zygote" if request.param == "zygote" else "spawn"
    with launcher(kind) as made:
        yield made


def fits(value: JSON) -> Outcome:
    return Fits(peak=Peak(demand_bytes=1), steps=1, step_s=1.0, samples_per_s=1.0)


def outcome_of(ending: Ending) -> Outcome:
    return classify(ending, fits)


def kill_if_there(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.smoke("launcher:zygote", "launcher:spawn")
def test_a_child_returns_the_result_of_its_function(opened: Launcher) -> None:
    assert ending_of(opened, "echo", number=1, text="x").returned == {"number": 1, "text": "x"}


def test_a_child_leads_its_own_process_group_with_the_highest_oom_score(opened: Launcher) -> None:
    told = ending_of(opened, "where").returned
    assert isinstance(told, dict)
    assert told["pid"] == told["group"] != os.getpgid(0)
    assert told["oom_score_adj"] == 1000


def test_a_child_has_the_given_environment_and_working_directory(opened: Launcher) -> None:
    told = ending_of(opened, "where").returned
    assert isinstance(told, dict)
    assert told["environment"] == dict(os.environ)
    assert told["cwd"] == job("where").working_directory


@pytest.mark.smoke("outcome:user-code-failed")
def test_a_user_error_keeps_its_cause_and_its_traceback(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "fail"))
    assert isinstance(outcome, UserCodeFailed)
    assert outcome.error == "ValueError: the shapes do not match"
    assert "KeyError: 'inner'" in outcome.traceback


def test_sys_exit_in_user_code_is_a_user_error_and_not_a_result(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "sys_exit"))
    assert isinstance(outcome, UserCodeFailed)
    assert outcome.error == "SystemExit: 3"


@pytest.mark.parametrize("code", [0, 7])
def test_os_exit_without_a_result_is_a_user_error_even_with_code_zero(opened: Launcher, code: int) -> None:
    outcome = outcome_of(ending_of(opened, "leave", code=code))
    assert isinstance(outcome, UserCodeFailed)
    assert f"exit code {code}" in outcome.error


@pytest.mark.smoke("outcome:killed-from-outside")
def test_a_kill_from_outside_is_reported_as_such(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "die", signal=int(signal.SIGKILL)))
    assert outcome == KilledFromOutside(signal=9)


def test_a_segfault_far_from_the_limit_is_a_user_error_with_a_traceback(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "segfault"))
    assert isinstance(outcome, UserCodeFailed)
    assert "SIGSEGV" in outcome.error
    assert "segfault" in outcome.traceback


@pytest.mark.smoke("outcome:timed-out")
def test_a_child_that_hangs_is_ended_at_its_deadline_with_a_stack_trace(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "hang", limit_s=0.3))
    assert isinstance(outcome, TimedOut)
    assert outcome.phase == "measure"
    assert "in hang" in outcome.detail


def test_a_user_signal_handler_does_not_hide_where_a_child_hangs(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "hang_with_an_own_handler", limit_s=0.3))
    assert isinstance(outcome, TimedOut)
    assert "in hang" in outcome.detail


def test_a_stopped_child_is_ended_at_its_deadline(opened: Launcher) -> None:
    def stop(message: Message) -> None:
        raise AssertionError("nothing is told")

    limits = ChildLimits(phase_s={"measure": 0.3})
    ending = ending_of(opened, "stop_itself", limits, listen=stop)
    assert isinstance(outcome_of(ending), TimedOut)


def test_megabytes_of_output_do_not_block_a_child_and_are_truncated(opened: Launcher) -> None:
    ending = ending_of(opened, "shout", kib=20_000)
    assert ending.returned == "done"
    assert 0 < len(ending.output) <= 64 * 1024


def test_a_grandchild_does_not_outlive_the_child(opened: Launcher) -> None:
    told: list[Message] = []
    ending = ending_of(opened, "fork_and_wait", listen=told.append)
    assert ending.has_result
    assert gone(int(str(told[0]["grandchild"])))


@pytest.mark.smoke
def test_a_grandchild_does_not_outlive_a_killed_child(opened: Launcher) -> None:
    told: list[Message] = []
    ending_of(opened, "fork_and_wait", listen=told.append, killed=True)
    assert gone(int(str(told[0]["grandchild"])))


@pytest.mark.smoke
def test_openmp_works_in_a_child(opened: Launcher) -> None:
    assert ending_of(opened, "spawn_threads", ChildLimits(total_s=30)).returned == 512.0**3


def test_the_fence_makes_python_raise_a_memory_error(opened: Launcher) -> None:
    ending = ending_of(opened, "hold", ChildLimits(allowed_bytes=500 * MIB), bytes=900 * MIB)
    outcome = outcome_of(ending)
    assert ending.armed
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "fence"
    assert ending.peak_anonymous_bytes <= 500 * MIB + 16 * MIB


@pytest.mark.smoke("outcome:out-of-memory")
def test_the_fence_makes_torch_raise_its_allocator_error(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "tensors", ChildLimits(allowed_bytes=600 * MIB), bytes=900 * MIB))
    assert isinstance(outcome, OutOfMemory)
    assert "DefaultCPUAllocator" in outcome.detail


def test_a_child_within_the_fence_is_not_affected(opened: Launcher) -> None:
    ending = ending_of(opened, "hold", ChildLimits(allowed_bytes=600 * MIB), bytes=200 * MIB)
    assert ending.returned == {"armed": True, "held": 200 * MIB}
    assert ending.peak_anonymous_bytes >= 200 * MIB


def test_user_code_cannot_raise_the_limit_of_the_fence(opened: Launcher) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may raise a hard limit")
    assert ending_of(opened, "raise_limit", ChildLimits(allowed_bytes=600 * MIB)).returned == "refused"


@pytest.mark.smoke("outcome:out-of-memory")
def test_the_watchdog_ends_a_child_without_a_fence(opened: Launcher) -> None:
    ending = ending_of(opened, "hold", ChildLimits(allowed_bytes=400 * MIB), bytes=900 * MIB, arm=False, linger_s=5)
    outcome = outcome_of(ending)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "watchdog"


def test_a_truncated_result_counts_as_no_result(opened: Launcher) -> None:
    outcome = outcome_of(ending_of(opened, "tear_result"))
    assert isinstance(outcome, UserCodeFailed)
    assert "without a result" in outcome.error


def test_shared_memory_of_a_child_is_removed_when_it_ends(opened: Launcher) -> None:
    before = set(Path("/dev/shm").iterdir())
    ending_of(opened, "leave_shared_memory")
    assert set(Path("/dev/shm").iterdir()) <= before


def test_a_killed_zygote_is_reported_and_its_child_is_killed() -> None:
    with launcher("zygote") as made:
        told: list[Message] = []

        def kill_zygote(message: Message) -> None:
            told.append(message)
            assert made.overhead_pid is not None
            os.kill(made.overhead_pid, signal.SIGKILL)

        ending = ending_of(made, "tell_and_hang", listen=kill_zygote)
        assert "ended unexpectedly" in ending.infrastructure
        assert gone(int(str(told[0]["pid"])))
        with pytest.raises(GuardError):
            ending_of(made, "echo")


@pytest.mark.smoke
def test_children_and_grandchildren_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "parent.py"
    script.write_text(
        "from tests.support.guarded import ending_of, launcher\n"
        "with launcher('zygote') as made:\n"
        "    ending_of(made, 'tell_family', listen=lambda message: print(message['pid'], message['grandchild'], flush=True))\n"
    )
    environment = {**os.environ, "PYTHONPATH": job("echo").working_directory}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_each_random_kill_produces_one_outcome_and_leaves_no_process() -> None:
    import random
    import threading

    chance = random.Random(4)
    with launcher("zygote") as made:
        for _ in range(40):
            pids: list[int] = []

            def kill_later(message: Message, pids: list[int] = pids) -> None:
                pids.append(int(str(message["pid"])))
                threading.Timer(chance.uniform(0, 0.03), kill_if_there, pids).start()

            outcome = outcome_of(ending_of(made, "tell_and_work", listen=kill_later))
            assert isinstance(outcome, (KilledFromOutside, Fits))
            assert gone(pids[0])
            time.sleep(0.03)
