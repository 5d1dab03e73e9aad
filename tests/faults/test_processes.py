"""Processes that are killed, stopped or replaced: the probe, the zygote, the parent; results that are not what they should be."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchcal.calibration.schema import Calibration
from batchcal.guard.channel.wire import Channel, Message
from batchcal.guard.launch import StartedChild, ZygoteLauncher
from batchcal.guard.outcome import Fits, Infrastructure, KilledFromOutside, TimedOut, UserCodeFailed
from batchcal.measure.children.probe_job import ProbeAnswer
from tests.faults.lab import ROOT, Lab, ask, gone, kill_group, lab, parent_of, pid_in, waited_for
from tests.support.guarded import ending_of, launcher

pytestmark = [pytest.mark.child, pytest.mark.slow]

HELD = {
    "anonymous_bytes": 1 << 28,
    "shared_bytes": 0,
    "file_bytes": 0,
    "workers_bytes": 0,
    "load_peak_bytes": 1 << 28,
    "begin_bytes": 1 << 28,
    "step_peak_bytes": 1 << 28,
    "accelerator_bytes": None,
    "accelerator_allocated_bytes": None,
    "accelerator_retries": 0,
}
VALID = {"held": HELD, "step_s": [0.1, 0.1]}


def test_a_killed_probe_is_reported_and_the_next_probe_works(machine: Lab, tmp_path: Path) -> None:
    machine.begin(ask("slow", 8, tell=str(tmp_path / "tell")))
    os.kill(pid_in(tmp_path / "tell"), signal.SIGKILL)
    assert machine.report().outcome == KilledFromOutside(signal=9)
    assert isinstance(machine.outcome(ask("plain", 8)), Fits)


def test_a_suspended_probe_times_out_by_wall_clock(machine: Lab, tmp_path: Path) -> None:
    machine.begin(ask("slow", 8, tell=str(tmp_path / "tell"), deadline_s=5))
    pid = pid_in(tmp_path / "tell")
    os.kill(pid, signal.SIGSTOP)
    assert isinstance(machine.report().outcome, TimedOut)
    assert gone(pid)


def test_a_killed_zygote_ends_its_child_and_is_replaced(tmp_path: Path) -> None:
    with lab() as opened:
        opened.begin(ask("slow", 8, tell=str(tmp_path / "tell")))
        pid = pid_in(tmp_path / "tell")
        zygote = parent_of(pid)
        os.kill(zygote, signal.SIGKILL)
        assert isinstance(opened.report().outcome, Infrastructure)
        assert gone(pid)
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)


@pytest.mark.slow
def test_a_suspended_zygote_does_not_block_the_parent(tmp_path: Path) -> None:
    with lab(environment={"LAB_START_LIMIT_S": "4"}) as opened:
        opened.begin(ask("slow", 8, tell=str(tmp_path / "tell"), seconds=60.0, deadline_s=3))
        pid = pid_in(tmp_path / "tell")
        os.kill(parent_of(pid), signal.SIGSTOP)
        assert isinstance(opened.report().outcome, TimedOut)
        assert gone(pid)
        assert isinstance(opened.outcome(ask("plain", 8)), Fits)


def test_all_children_end_when_the_parent_is_killed_and_the_next_run_works(machine: Lab, tmp_path: Path) -> None:
    output = tmp_path / "calibration.json"
    with lab() as opened:
        stuck = ask("in_workers", workers=2, fault="stuck", tell=str(tmp_path / "worker"))
        opened.begin(stuck.model_copy(update={"output": str(output)}))
        workers = [waited_for(lambda: next(iter(told(tmp_path)), None))]
        probe = parent_of(workers[0])
        pids = {*told(tmp_path), probe, parent_of(probe)}
        opened.process.kill()
        opened.process.wait()
        assert all(gone(pid, 1.0) for pid in pids)
    made = machine.calibrate(ask("plain"), output, max_probes=2, max_batch=64)
    assert isinstance(made, Calibration)
    assert made.finding() is not None


def told(directory: Path) -> list[int]:
    return [int(path.read_text()) for path in directory.glob("worker-*") if not path.name.endswith(".part")]


SLOW = """
from tests.faults.tasks import slow
def task(): return slow({tell!r}, seconds=30.0)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_process_1_of_a_container_ends_with_all_children_on_a_signal(tmp_path: Path, number: int, code: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a pid namespace")
    tell = tmp_path / "tell"
    (tmp_path / "slow.py").write_text(SLOW.format(tell=str(tell)))
    # In its own pid namespace it is process 1: without a handler of its own the kernel would drop the signal.
    command = ["unshare", "-fp", "--mount-proc", sys.executable, "-m", "batchcal", "calibrate", "slow.py:task"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--device", "cpu", "--memory-limit", "2GiB"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as outside:
        try:
            pid_in(tell)
            inside = int(Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text())
            os.kill(inside, number)
            _, talk = outside.communicate(timeout=40)
        finally:
            kill_group(outside.pid)
    assert outside.returncode == code, talk
    assert "Traceback" not in talk
    assert f"stopped by {signal.Signals(number).name}" in talk
    assert gone(inside, 1.0)


def test_a_late_kill_does_not_hit_a_process_that_reuses_the_pid() -> None:
    last = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(last, os.W_OK):
        pytest.skip("needs root to choose the next pid")
    with launcher("zygote") as opened:
        assert isinstance(opened, ZygoteLauncher)
        returned = ending_of(opened, "where").returned
        assert isinstance(returned, dict)
        pid = int(str(returned["pid"]))
        stranger = process_with(pid, last)
        try:
            late = StartedChild(pid, None, Channel(socket.socket()), os.open(os.devnull, os.O_RDONLY), Path("/nowhere"))
            opened.kill(late)
            late.close()
            assert ending_of(opened, "echo", number=1).has_result, "it has read the kill by now"
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


def process_with(pid: int, last: Path) -> subprocess.Popen[bytes]:
    """A process of its own group that is given the id `pid`, which is free."""
    for _ in range(50):  # somebody else may be given it first
        last.write_text(str(pid - 1))
        found = subprocess.Popen(["sleep", "30"], start_new_session=True)
        if found.pid == pid:
            return found
        found.kill()
        found.wait()
    pytest.skip("the pid was not to be had")


DEEP = "[" * 100_000
RESULTS = [
    pytest.param("", id="empty"),
    pytest.param('{"returned": {"anonym', id="torn"),
    pytest.param("\x00\x01\x02", id="binary"),
    pytest.param("[1, 2]", id="a list"),
    pytest.param('{"returned": NaN}', id="NaN"),
    pytest.param('{"returned": 1e999}', id="infinite"),
    pytest.param('{"returned": ' + "9" * 5000 + "}", id="5000 digits"),
    pytest.param(DEEP, id="deep"),
    pytest.param('{"returned": null}', id="nothing"),
    pytest.param('{"returned": {"step_s": []}}', id="fields are missing"),
    pytest.param('{"raised": {"chain": []}}', id="an exception without a class"),
    pytest.param('{"raised": 7}', id="a number for an exception"),
]


@pytest.mark.parametrize("text", RESULTS)
def test_a_malformed_result_is_never_accepted(machine: Lab, text: str) -> None:
    outcome = machine.outcome(ask("tampering", 8, text=text))
    assert isinstance(outcome, Infrastructure | UserCodeFailed), outcome


def test_an_invalid_examination_raises_guard_error(machine: Lab) -> None:
    failed = machine.examine(ask("tampering", text='{"returned": {"examination": {"base_bytes": -1}}}'))
    assert failed.model_dump()["type"] == "GuardError"


BYTES = [name for name in HELD if name.endswith("_bytes")]
not_whole = st.floats().filter(lambda value: not value.is_integer())


@given(
    st.sampled_from(BYTES), st.integers(max_value=-1) | st.integers(min_value=(1 << 50) + 1) | not_whole | st.lists(st.integers())
)
def test_an_impossible_byte_count_is_rejected(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        ProbeAnswer.model_validate({**VALID, "held": {**HELD, name: value}})


@pytest.mark.parametrize("seconds", [[], [-1.0], [float("nan")], [float("inf")], "soon"])
def test_an_impossible_duration_is_rejected(seconds: object) -> None:
    assert ProbeAnswer.model_validate(VALID).step_s == (0.1, 0.1)
    with pytest.raises(ValidationError):
        ProbeAnswer.model_validate({**VALID, "step_s": seconds})


@pytest.mark.slow
def test_children_killed_at_random_times_each_have_one_outcome() -> None:
    chance = random.Random(11)
    with launcher("zygote") as opened:
        for _ in range(150):

            def kill_later(message: Message) -> None:
                threading.Timer(chance.uniform(0, 0.03), kill, (int(str(message["pid"])),)).start()

            ending = ending_of(opened, "tell_and_work", listen=kill_later)
            assert ending.returned == "done" or ending.exit_status == -signal.SIGKILL


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
