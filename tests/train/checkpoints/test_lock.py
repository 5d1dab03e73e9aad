"""One run writes a checkpoint at a time."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from batchcal.core.errors import NotSaved, UsageError
from batchcal.train.checkpoints.checkpoint import Standing, save_checkpoint
from batchcal.train.checkpoints.files import is_checkpoint, partial_path
from batchcal.train.checkpoints.lock import checkpoint_lock, locked_by, refuse_in_use
from batchcal.train.loop import train
from tests.support.locks import locked
from tests.support.plans import a_plan
from tests.support.tasks import a_task

STANDING = Standing(seed=0, effective_batch=10, train_samples=100, epoch=0, group=0)


def test_a_partial_file_locked_by_another_run_is_neither_written_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    partial_path(path).write_bytes(b"of another run")
    with locked(partial_path(path)), pytest.raises(NotSaved) as caught:
        save_checkpoint(path, STANDING, task=a_task())
    assert f"process {os.getpid()} writes the same checkpoint" in caught.value.known
    assert partial_path(path).read_bytes() == b"of another run"
    save_checkpoint(path, STANDING, task=a_task())
    assert is_checkpoint(path)
    assert not partial_path(path).exists()


def test_a_checkpoint_of_an_active_run_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, STANDING, task=a_task())
    before = path.read_bytes()
    with locked(path):
        with pytest.raises(NotSaved, match="could not be written"):
            save_checkpoint(path, STANDING, task=a_task())
        with pytest.raises(UsageError, match="still active") as caught:
            train(a_task(20), a_plan(10), checkpoint=path, resume=True)
    assert f"kill {os.getpid()}" in caught.value.try_
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_locks_its_checkpoint_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with checkpoint_lock(path):
        for _ in range(2):
            save_checkpoint(path, STANDING, task=a_task())
            assert locked_by(path) is None, "this run is not another"
            refuse_in_use(path, partial_path(path))
            with path.open("ab") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.child
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    read, write = os.pipe()
    with checkpoint_lock(path):
        save_checkpoint(path, STANDING, task=a_task())
        child = os.fork()
        if child == 0:
            os.write(write, (locked_by(path) or "free").encode())
            signal.pause()
        assert os.read(read, 100).decode() == f"process {os.getpid()}"
    try:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
