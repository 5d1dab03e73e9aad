"""Real commands under a supervisor: whatever they start, nothing is left, and the peak is that of all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.guard.call import Unwatched
from batchcal.guard.channel.wire import Message
from batchcal.guard.classify import classify
from batchcal.guard.commands.command import CommandJob, CommandLauncher, run_command
from batchcal.guard.outcome import OutOfMemory, TimedOut, UserCodeFailed
from batchcal.guard.run import ChildLimits
from batchcal.machine.meters import descendants
from tests.guard.test_children import fits
from tests.support.cgroups import memory_cgroup
from tests.support.trees import MARK, MIB, PROGRAM, REPOSITORY, ending_of, marked

pytestmark = pytest.mark.child
DEADLINE = ChildLimits(total_s=1.5, total_name="the test's limit")


@pytest.fixture
def mark() -> Iterator[str]:
    made = uuid.uuid4().hex
    yield made
    assert marked(made) == ()


@pytest.mark.smoke("launcher:command")
def test_a_successful_command_returns_the_reports_of_its_ranks(mark: str) -> None:
    ending = ending_of(*PROGRAM, "ready", "64", mark=mark)
    assert ending.exit_status == 0
    assert ending.returned == {"ranks": {"0": {"armed": False, "mib": 64, "refused": False}}}
    assert ending.peak_anonymous_bytes > 64 * MIB


def test_the_exit_code_and_the_output_of_a_command_are_returned(mark: str) -> None:
    ending = ending_of("sh", "-c", "echo out; echo err >&2; exit 7", mark=mark)
    assert (ending.exit_status, ending.has_result, ending.output) == (7, False, "out\nerr\n")
    outcome = classify(ending, fits)
    assert isinstance(outcome, UserCodeFailed)
    assert "exit code 7" in outcome.error


@pytest.mark.parametrize(("name", "status"), [("absent", 127), ("text", 126)])
def test_a_program_that_cannot_be_started_has_the_exit_code_of_a_shell(name: str, status: int, mark: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    ending = ending_of(str(tmp_path / name), mark=mark)
    assert ending.exit_status == status
    assert name in ending.output


def test_the_exit_status_is_the_signal_that_ended_the_command(mark: str) -> None:
    assert ending_of("sh", "-c", "kill -SEGV $$", mark=mark).exit_status == -signal.SIGSEGV


@pytest.mark.parametrize(
    "argv",
    [
        ("sh", "-c", "setsid sleep 100 & sleep 0.2"),
        ("sh", "-c", "(setsid sleep 100 >/dev/null 2>&1 &) ; exit 3"),
        (*PROGRAM, "daemon", "100"),
    ],
)
def test_processes_left_by_a_command_are_killed(argv: tuple[str, ...], mark: str) -> None:
    began = time.monotonic()
    ending = ending_of(*argv, mark=mark)
    assert ending.exit_status in {0, 3}
    assert time.monotonic() - began < 20, "none of the 100 s that they sleep"


@pytest.mark.parametrize("argv", [(*PROGRAM, "breed", "100"), ("sh", "-c", "trap '' TERM; setsid sleep 100 & sleep 100")])
def test_a_deadline_ends_every_session(argv: tuple[str, ...], mark: str) -> None:
    ending = ending_of(*argv, limits=DEADLINE, mark=mark)
    outcome = classify(ending, fits)
    assert isinstance(outcome, TimedOut)
    assert outcome.limit_name == "the test's limit"


@pytest.mark.slow
def test_the_ranks_of_torchrun_report_and_are_ended(mark: str, tmp_path: Path) -> None:
    told: list[Message] = []
    reported: list[float] = []

    def listen(message: Message) -> None:
        told.append(message)
        reported.append(time.monotonic())

    def stop_when_both_are_there() -> None:
        if len(told) == 2 and time.monotonic() - reported[-1] > 0.2:
            raise KeyboardInterrupt

    program = str(REPOSITORY / "tests" / "support" / "trees.py")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--log-dir", str(tmp_path))
    argv = (*torchrun, program, "rank", "100")
    with pytest.raises(KeyboardInterrupt):
        ending_of(
            *argv,
            limits=ChildLimits(phase_s={"load": 120.0}, neighbours=True),
            listen=listen,
            check=stop_when_both_are_there,
            mark=mark,
        )
    assert time.monotonic() - reported[-1] < 0.2 + 3
    assert sorted(message["rank"] for message in told if isinstance(message["rank"], int)) == [0, 1]
    assert len({message["session"] for message in told}) == 2, "each rank has a session of its own"


def test_a_process_tree_above_its_budget_is_killed(mark: str) -> None:
    half = f"{' '.join(PROGRAM)} hold 150 60"
    ending = ending_of("sh", "-c", f"{half} & setsid {half} & wait", limits=ChildLimits(allowed_bytes=250 * MIB), mark=mark)
    outcome = classify(ending, fits)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.source == "watchdog"


def test_a_ready_process_gets_its_share_of_the_memory_as_a_data_limit(mark: str) -> None:
    limits = ChildLimits(allowed_bytes=300 * MIB, processes=2)
    ending = ending_of(*PROGRAM, "ready", "1000", limits=limits, mark=mark)
    assert isinstance(ending.returned, dict)
    ranks = ending.returned["ranks"]
    assert isinstance(ranks, dict)
    told = ranks["0"]
    assert isinstance(told, dict)
    assert (told["armed"], told["refused"]) == (True, True)
    came = told["mib"]
    assert isinstance(came, int)
    assert 110 < came < 165, "about half of what 300 MiB leave beside the interpreter"


def test_memory_shared_by_forked_processes_is_counted_once(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # traced processes write memory of their own at their ends
    little = ending_of(*PROGRAM, "share", "1", "3", "1.0", mark=mark)
    much = ending_of(*PROGRAM, "share", "201", "3", "1.0", mark=mark)
    assert (little.exit_status, much.exit_status) == (0, 0)
    more = much.peak_anonymous_bytes - little.peak_anonymous_bytes
    assert 250 * MIB < more < 280 * MIB, "200 shared by four, 3 x 20 of their own; what interpreters take is in both"


@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_killed_supervisor_is_infrastructure_and_leaves_no_process(members: int, mark: str) -> None:
    def kill_supervisor() -> None:
        if len(marked(mark)) >= members:
            for child in supervisors():
                os.kill(child, signal.SIGKILL)

    ending = ending_of("sh", "-c", "setsid sleep 100 & sleep 100", check=kill_supervisor, mark=mark)
    assert "supervises the command ended unexpectedly" in ending.infrastructure


def supervisors() -> list[int]:
    return [
        pid
        for pid in descendants(os.getpid())
        if b"batchcal.guard.commands.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_remains_after_the_parent_ends(number: signal.Signals, mark: str) -> None:
    script = (
        "from tests.support.trees import ending_of; "
        f"ending_of('sh', '-c', 'setsid sleep 100 & echo begun; sleep 100', mark='{mark}')"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY) as parent:
        until = time.monotonic() + 30
        while len(marked(mark)) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(marked(mark)) >= 2
        parent.send_signal(number)
        parent.wait()
    until = time.monotonic() + 5
    while marked(mark) and time.monotonic() < until:
        time.sleep(0.02)


def test_a_command_cannot_limit_a_process_that_is_not_its_own(mark: str) -> None:
    lie = (
        "import json, os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['BATCHCAL_PROBE_SOCKET']); "
        "s.sendall(json.dumps({'arm': os.getppid(), 'ready': 'x', 'tell': 3}).encode() + b'\\n' + b'garbage\\n'); "
        "s.sendall(b'x' * 3_000_000)"
    )
    ending = ending_of(sys.executable, "-c", lie, limits=ChildLimits(allowed_bytes=300 * MIB), mark=mark)
    assert ending.exit_status is not None
    assert ending.killed_for is None


@pytest.mark.cgroup
def test_the_watchdog_acts_before_the_kernel_in_a_small_container(mark: str) -> None:
    script = (
        "import json; from tests.support.trees import PROGRAM, ending_of; from batchcal.guard.run import ChildLimits; "
        "half = ' '.join(PROGRAM) + ' hold 700 60'; "
        f"ending = ending_of('sh', '-c', half + ' & setsid ' + half + ' & wait', limits=ChildLimits(), mark='{mark}'); "
        "print(json.dumps([ending.killed_for, ending.kill_reason]))"
    )
    with memory_cgroup(1024 * MIB) as group:
        done = group.run([sys.executable, "-c", script], cwd=REPOSITORY)
        assert group.oom_kills() == 0
    assert json.loads(done.stdout)[0] == "memory", done.stderr


def test_two_commands_of_a_launcher_do_not_affect_each_other(mark: str) -> None:
    launcher = CommandLauncher()
    environment = dict(os.environ)
    try:
        first = launcher.start(CommandJob(("sleep", "100"), environment, "/"))
        meter = Unwatched()
        done = run_command(
            CommandJob(("sh", "-c", "setsid sleep 100 & exit 0"), environment, "/"), launcher, meter, ChildLimits()
        )
        assert done.exit_status == 0
        assert not launcher.poll(first)
        launcher.kill(first)
        until = time.monotonic() + 5
        while not launcher.poll(first) and time.monotonic() < until:
            time.sleep(0.01)
        assert first.exit_status == -signal.SIGKILL
        first.close()
    finally:
        launcher.close()


def test_a_command_that_is_killed_before_its_supervisor_is_ready_does_not_run(mark: str, tmp_path: Path) -> None:
    launcher = CommandLauncher()
    ran = tmp_path / "ran"
    try:
        started = launcher.start(CommandJob(("sh", "-c", f"touch {ran}; sleep 100"), {**os.environ, MARK: mark}, "/"))
        launcher.kill(started)
        until = time.monotonic() + 30
        while not launcher.poll(started) and time.monotonic() < until:
            time.sleep(0.01)
        assert started.exit_status == -signal.SIGKILL
        assert not ran.exists()
        started.close()
    finally:
        launcher.close()


def test_closing_a_command_launcher_ends_its_commands(mark: str) -> None:
    launcher = CommandLauncher()
    environment = {**os.environ, MARK: mark}
    started = launcher.start(CommandJob(("sh", "-c", "setsid sleep 100 & (setsid sleep 100 &); sleep 100"), environment, "/"))
    until = time.monotonic() + 30
    while len(marked(mark)) < 4 and time.monotonic() < until:
        time.sleep(0.02)
    launcher.close()
    assert marked(mark) == ()
    started.close()
