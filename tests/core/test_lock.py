"""One at a time where the file system allows it; where it does not, on without, and saying so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batchcal.core.clock import ManualClock
from batchcal.core.lock import Lock, LockResult
from tests.support.faults import faulty_environment

ROOT = Path(__file__).parents[2]
HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from batchcal.core.lock import Lock
lock = Lock(Path(sys.argv[1]))
state = lock.acquire(wait_s=0).state
child = None
if sys.argv[2] == "exec":
    child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid
if sys.argv[2] == "fork":
    child = os.fork()
    if not child:
        time.sleep(60)
print(state, child or 0, flush=True)
time.sleep(60)
"""
TRY = """
import sys
from pathlib import Path
from batchcal.core.lock import Lock
lock = Lock(Path(sys.argv[1]))
result = lock.acquire(wait_s=0.2)
lock.release()
print(result.state, result.notice)
"""


@contextmanager
def holder(path: Path, meanwhile: str = "nothing") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock, with the pid of a child that it started meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), meanwhile], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    state, child = process.stdout.readline().split()
    assert state == "held"
    try:
        yield process, int(child)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if int(child):
            os.kill(int(child), 9)


def a_try(path: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(path)], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_free_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    with lock:
        first = lock.acquire(wait_s=0)
        held = lock.is_held
    again = lock.acquire(wait_s=0)
    lock.release()
    lock.release()

    assert (first, held, again) == (LockResult("held"), True, LockResult("held"))
    assert not lock.is_held


def test_a_free_lock_is_not_acquired_if_the_result_already_exists(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")

    assert lock.acquire(wait_s=0, done=lambda: True).state == "done"
    assert not lock.is_held
    assert Lock(tmp_path / "lock").acquire(wait_s=0).state == "held"


def test_an_unavailable_lock_file_produces_a_notice_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    result = Lock(tmp_path / "folder").acquire(wait_s=0)

    assert result.state == "unavailable"
    assert "another calibration may run at the same time" in result.notice


@pytest.mark.child
def test_a_waiting_process_reports_the_lock_holder_and_the_time_limit(tmp_path: Path) -> None:
    texts: list[str] = []
    with holder(tmp_path / "lock") as (process, _):
        Lock(tmp_path / "lock").acquire(wait_s=0.3, on_wait=texts.append)
    (text,) = texts
    assert f"process {process.pid} on {socket.gethostname()} since 20" in text
    assert "up to 0.3 s" in text


def test_a_lock_file_with_other_content_is_not_modified(tmp_path: Path) -> None:
    path = tmp_path / "poetry.lock"
    path.write_text("mine\n")
    with Lock(path) as lock:
        assert lock.acquire(wait_s=0, on_wait=lambda text: None).state == "held"
    assert path.read_text() == "mine\n"


@pytest.mark.child
def test_waiting_for_a_lock_ends_after_the_time_limit(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 7, 1, tzinfo=UTC))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.move(seconds)

    with holder(tmp_path / "lock"):
        result = Lock(tmp_path / "lock", clock=clock, sleep=sleep).acquire(wait_s=3)

    assert result.state == "timed-out"
    assert "for 3 s" in result.notice
    assert sum(waits) == pytest.approx(3)
    assert len(set(waits)) > 10  # drawn, so that replicas do not march in step


@pytest.mark.child
def test_waiting_for_a_lock_ends_when_another_process_has_the_result(tmp_path: Path) -> None:
    looks = iter([False, False, True])
    with holder(tmp_path / "lock"):
        result = Lock(tmp_path / "lock", sleep=lambda seconds: None).acquire(wait_s=60, done=lambda: next(looks))

    assert result.state == "done"


@pytest.mark.smoke
@pytest.mark.child
@pytest.mark.parametrize("meanwhile", ["nothing", "exec", "fork"])
def test_a_killed_holder_releases_the_lock_even_if_its_child_still_runs(tmp_path: Path, meanwhile: str) -> None:
    path = tmp_path / "lock"
    with holder(path, meanwhile) as (process, _):
        process.kill()
        process.wait()

        assert a_try(path) == "held \n"


@pytest.mark.child
@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP", "EIO"])
def test_a_file_system_without_locks_produces_a_notice_and_no_error(tmp_path: Path, error: str) -> None:
    state, _, notice = a_try(tmp_path / "lock", faulty_environment(tmp_path, {"flock": error})).partition(" ")

    assert state == "unavailable"
    assert "another calibration may run at the same time" in notice


@pytest.mark.child
def test_a_system_without_flock_still_locks(tmp_path: Path) -> None:
    environment = faulty_environment(tmp_path, {"flock": "ENOSYS"})

    assert a_try(tmp_path / "lock", environment).startswith("held")
