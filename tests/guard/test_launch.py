"""Starting children: what can be in the way, and what is cleaned up all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from batchcal.core.errors import GuardError
from batchcal.guard import launch, run
from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.classify import classify
from batchcal.guard.job import ChildContext, name_of, resolve
from batchcal.guard.launch import (
    Launcher,
    SpawnLauncher,
    ZygoteLauncher,
    request_of,
    start_environment,
)
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, Peak, TimedOut, UserCodeFailed
from batchcal.guard.run import ChildLimits
from batchcal.machine.allocator import resolve as policy
from tests.support.guarded import ending_of, job, launcher

DEFAULT = policy("default")


def fits(value: JSON) -> Outcome:
    return Fits(peak=Peak(demand_bytes=1), steps=1, step_s=1.0, samples_per_s=1.0)


@pytest.fixture(scope="module")
def opened() -> Iterator[Launcher]:
    with launcher("zygote") as made:
        yield made


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_error_for_a_missing_temporary_folder_suggests_tmpdir(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "none"))
    for start in (lambda: ZygoteLauncher(DEFAULT, {}), lambda: SpawnLauncher(DEFAULT, {})):
        with pytest.raises(GuardError) as raised:
            start()
        assert "No such file" in raised.value.known
        assert "TMPDIR" in raised.value.try_


def test_a_child_starts_single_threaded_and_can_import_batchcal() -> None:
    environment = start_environment(DEFAULT, {"PYTHONPATH": "/mine", "OPENBLAS_NUM_THREADS": "8"})
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    mine, ours = environment["PYTHONPATH"].split(os.pathsep)
    assert mine == "/mine"
    assert (Path(ours) / "batchcal" / "guard").is_dir()


def test_long_arguments_are_passed_in_a_file(tmp_path: Path) -> None:
    request = request_of(job("echo", text="x" * 5_000_000), tmp_path)
    assert len(str(request)) < 100_000
    assert (tmp_path / "arguments.json").stat().st_size > 5_000_000


def test_a_job_must_be_a_function_of_a_module() -> None:
    def inner(arguments: dict[str, JSON], context: ChildContext) -> JSON:
        return None

    assert callable(resolve(name_of(job("echo").function)))
    with pytest.raises(ValueError, match="not a function of a module"):
        name_of(inner)


def test_an_object_that_is_not_a_function_cannot_be_resolved() -> None:
    with pytest.raises(TypeError):
        resolve("batchcal.guard.channel.wire:LINE_LIMIT")


@pytest.mark.child
@pytest.mark.parametrize("kind", [ZygoteLauncher, SpawnLauncher])
def test_a_missing_interpreter_raises_guard_error(
    kind: type[ZygoteLauncher | SpawnLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(GuardError) as raised, closing(kind(DEFAULT, os.environ)) as made:
        made.start(job("echo"))
    assert raised.value.what == "no child process could be started"
    assert "/nowhere/python" in raised.value.known


def interpreter(folder: Path, text: str) -> str:
    """Another program in the place of Python; `connection` is its line to us."""
    script = folder / "python"
    head = f"#!{sys.executable}\nimport socket, sys, time\nconnection = socket.socket(fileno=int(sys.argv[4]))\n"
    script.write_text(head + text)
    script.chmod(0o755)
    return str(script)


@pytest.mark.child
@pytest.mark.parametrize(
    ("text", "known"),
    [
        ('connection.send(b\'{"ready": true, "threads": 3}\\n\')\nconnection.recv(9)\n', "3 threads"),
        ("sys.exit('no module named torch')\n", "no module named torch"),
        ("time.sleep(60)\n", ""),
    ],
    ids=["threads", "dead", "silent"],
)
def test_an_unusable_zygote_is_ended_and_reported(text: str, known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setattr(launch, "READY_LIMIT_S", 0.3)
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, text))
    with pytest.raises(GuardError) as raised:
        ZygoteLauncher(DEFAULT, os.environ).await_ready()
    assert "not usable" in raised.value.what
    assert known in raised.value.known
    assert not list(Path(tempfile.gettempdir()).glob("batchcal-*"))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@pytest.mark.child
def test_a_stopped_zygote_is_reported_and_its_child_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KILL_LIMIT_S", 0.4)
    monkeypatch.setattr(launch, "START_LIMIT_S", 0.4)
    with launcher("zygote") as made:
        zygote = made.overhead_pid
        assert zygote is not None
        told: list[Message] = []

        def stop(message: Message) -> None:
            told.append(message)
            os.kill(zygote, signal.SIGSTOP)

        ending = ending_of(made, "tell_and_hang", ChildLimits(phase_s={"measure": 0.2}), listen=stop)
        assert "does not respond" in ending.infrastructure
        assert isinstance(classify(ending, fits), TimedOut)  # which came first
        until = time.monotonic() + 3
        while state_of(int(str(told[0]["pid"]))) != "Z" and time.monotonic() < until:
            time.sleep(0.01)
        assert state_of(int(str(told[0]["pid"]))) == "Z"  # dead; its parent will reap it when it goes on
        with pytest.raises(GuardError):
            ending_of(made, "echo")
        os.kill(zygote, signal.SIGCONT)


@pytest.mark.child
def test_a_child_can_be_killed_after_its_zygote_has_ended() -> None:
    with launcher("zygote") as made:
        child = made.start(job("hang"))
        assert made.overhead_pid is not None
        os.kill(made.overhead_pid, signal.SIGKILL)
        os.waitid(os.P_PID, made.overhead_pid, os.WEXITED | os.WNOWAIT)
        made.kill(child)
        with pytest.raises(GuardError) as raised:
            while not made.poll(child):
                time.sleep(0.01)
        assert "ended unexpectedly" in raised.value.what
        child.close()


@pytest.mark.child
def test_closing_a_launcher_ends_its_running_children() -> None:
    with launcher("spawn") as made:
        child = made.start(job("hang"))
        assert Path(f"/proc/{child.pid}").exists()
    assert not Path(f"/proc/{child.pid}").exists()
    child.close()


@pytest.mark.child
@pytest.mark.parametrize("kind", ["zygote", "spawn"])
def test_a_listener_that_fails_leaves_no_child(kind: str) -> None:
    class Failed(Exception):
        pass

    pids: list[int] = []

    def fail(message: Message) -> None:
        pids.append(int(str(message["pid"])))
        raise Failed

    with launcher("zygote" if kind == "zygote" else "spawn") as made:
        with pytest.raises(Failed):
            ending_of(made, "tell_and_hang", listen=fail)
        assert not Path(f"/proc/{pids[0]}").exists()
        assert ending_of(made, "echo", still="there").returned == {"still": "there"}


@pytest.mark.child
@pytest.mark.parametrize(
    "text",
    [
        '{"raised": {"chain": []}}', '{"raised": 5}', '{"returned": NaN}', '{"returned": Infinity}', "[1]", "", "[" * 100_000,
    ],
)  # fmt: skip
def test_an_invalid_result_file_counts_as_no_result(text: str, opened: Launcher) -> None:
    ending = ending_of(opened, "write_result", text=text)
    assert (ending.has_result, ending.raised) == (False, None)
    assert isinstance(classify(ending, fits), UserCodeFailed)


@pytest.mark.child
def test_a_result_file_that_is_too_large_counts_as_no_result(monkeypatch: pytest.MonkeyPatch, opened: Launcher) -> None:
    monkeypatch.setattr(run, "RESULT_LIMIT_BYTES", 100)
    assert ending_of(opened, "echo", text="x").has_result
    assert not ending_of(opened, "echo", text="x" * 200).has_result


@pytest.mark.smoke("outcome:infrastructure")
@pytest.mark.child
@pytest.mark.parametrize("kind", ["zygote", "spawn"])
def test_a_child_that_cannot_write_its_result_is_infrastructure(kind: str) -> None:
    with launcher("zygote" if kind == "zygote" else "spawn") as made:
        outcome = classify(ending_of(made, "lose_directory"), fits)
    assert isinstance(outcome, Infrastructure)
    assert "could not write its result" in outcome.detail
    assert "FileNotFoundError" in outcome.detail


@pytest.mark.child
def test_a_child_that_closes_its_output_still_returns_a_result(opened: Launcher) -> None:
    assert ending_of(opened, "close_output").returned == "done"


@pytest.mark.child
def test_a_data_limit_that_the_kernel_ignores_is_not_reported_as_a_fence(
    monkeypatch: pytest.MonkeyPatch, opened: Launcher
) -> None:
    monkeypatch.setattr(run, "arm_data_limit", lambda pid, allowed: True)
    ending = ending_of(opened, "hold", ChildLimits(allowed_bytes=600 << 20), bytes=32 << 20)
    assert ending.returned == {"armed": False, "held": 32 << 20}
    assert not ending.armed
    assert "rlimit-data" in ending.missing


@pytest.mark.child
def test_the_total_time_limit_applies_in_every_phase(opened: Launcher) -> None:
    ending = ending_of(opened, "hang", ChildLimits(total_s=1.5), limit_s=60)
    assert ending.killed_for == "deadline"
    assert ending.phase_limit_s == 1.5
    assert ending.wall_s < 30
    young = ending_of(opened, "hang", ChildLimits(total_s=0.0001), limit_s=60)
    assert young.killed_for == "deadline", "however early it is asked where it stands"
    assert young.phase_limit_s == 0.0001


@pytest.mark.child
def test_a_child_of_a_zygote_keeps_memory_under_the_retain_policy() -> None:
    faults: dict[str, int] = {}
    for name in ("default", "retain"):
        with launcher("zygote", name) as made:
            faults[name] = int(str(ending_of(made, "page_faults").returned))
    assert faults["retain"] < 0.5 * faults["default"]


@pytest.mark.child
def test_a_daemon_of_a_child_is_killed_with_the_child() -> None:
    """A daemon: a session of its own, whose parent is gone."""
    with launcher("zygote") as made:
        told: list[Message] = []
        ending = ending_of(made, "leave_a_daemon", listen=told.append)
        assert ending.returned == "done"
        pid = int(str(told[0]["daemon"]))
        until = time.monotonic() + 3
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.child
def test_a_child_started_without_a_parent_exits_immediately() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "batchcal.guard.children.child", "0", "1"], stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode != 0


@pytest.mark.child
def test_a_zygote_that_is_importing_ends_with_its_parent_and_removes_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    parent = (
        "import socket, subprocess, sys, time\n"
        "ours, theirs = socket.socketpair()\n"
        f"command = [sys.executable, '-m', 'batchcal.guard.children.zygote', str(theirs.fileno()), {str(home)!r}, 'torch']\n"
        "zygote = subprocess.Popen(command, pass_fds=(theirs.fileno(),), start_new_session=True)\n"
        "print(zygote.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        zygote = int(process.stdout.readline())
        maps = Path(f"/proc/{zygote}/maps")
        assert within(20, lambda: "libtorch" in maps.read_text())  # it is at its imports, and has said nothing yet
        process.kill()
    assert within(5, lambda: not maps.parent.exists())
    assert not home.exists()


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
