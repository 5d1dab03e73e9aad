"""Names of checkpoints in a project's folder, the newest of a task, and which ones go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from batchcal.train.checkpoints.checkpoint import Standing, save_checkpoint
from batchcal.train.checkpoints.files import (
    FOREIGN_AGE_S,
    is_checkpoint,
    new_checkpoint,
    newest_checkpoint,
    partial_path,
    process_space,
    remove_older,
    task_name,
)
from tests.support.locks import locked
from tests.support.tasks import a_task

STANDING = Standing(seed=0, effective_batch=10, train_samples=100, epoch=0, group=0)


def written(folder: Path, name: str, *, age: int) -> Path:
    path = folder / name
    save_checkpoint(path, STANDING, task=a_task())
    os.utime(path, ns=(10**18 - age * 10**9,) * 2)
    return path


def test_a_task_name_is_short_safe_and_unique() -> None:
    here = Path("/project")
    name = task_name("train.py:task", here)
    assert name.startswith("train.task-")
    assert task_name("./train.py:task", here) == name, "the same file"
    assert task_name("/project/train.py:task", here) == name
    assert task_name("other/train.py:task", here) not in (name, task_name("third/train.py:task", here))
    assert task_name("train.py:other", here) != name
    long = task_name("a b/ü;*" + "x" * 300 + ".py:task", here)
    assert long.replace(".", "").replace("-", "").replace("_", "").isalnum()
    assert len(long) < 60
    assert not task_name("a/.py:task", here).startswith(".")


def test_the_newest_checkpoint_is_chosen_by_modification_time(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent", "a.task-1") is None
    old = written(tmp_path, "a.task-1-20260102T000000-7.pt", age=9)
    assert newest_checkpoint(tmp_path, "a.task-1") == old
    new = written(tmp_path, "a.task-1-20260101T000000-8.pt", age=1)
    written(tmp_path, "a.task-2-20260101T000000-8.pt", age=0)
    torch.save({"weights": 1}, tmp_path / "a.task-1-20260103T000000-8.pt")
    assert newest_checkpoint(tmp_path, "a.task-1") == new


def test_older_checkpoints_are_removed_and_other_files_are_kept(tmp_path: Path) -> None:
    task = "a.task-1"
    gone = [written(tmp_path, f"{task}-2026010{day}T000000-999999{day}-{process_space()}.pt", age=20 - day) for day in (1, 2)]
    kept = [written(tmp_path, f"{task}-20260103T000000-9999993.pt", age=1)]
    partials = [partial_path(gone[0]), partial_path(tmp_path / f"{task}-20260104T000000-9999994-{process_space()}.pt")]
    for path in partials:
        path.write_bytes(b"half")
    for name in (f"{task}-20260101T000000-9999995.pt", f"{task}-final.pt", "run.pt", f"{task}-20260101T000000-9999995.pt.bak"):
        (tmp_path / name).write_bytes(b"the user's")
        kept.append(tmp_path / name)
    kept.append(written(tmp_path, "b.task-1-20260101T000000-9999991.pt", age=50))
    kept.append(written(tmp_path, f"{task}-20260101T000000-{os.getppid()}-{process_space()}.pt", age=60))
    current = written(tmp_path, new_checkpoint(tmp_path, task).name, age=0)
    remove_older(tmp_path, task, current)
    assert not [path for path in [*gone, *partials] if path.exists()]
    assert all(path.exists() for path in [*kept, current])


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x05\x06" + bytes(18)])
def test_a_file_of_another_program_is_not_a_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_checkpoint(path)
    assert not is_checkpoint(tmp_path)
    torch.save(a_task().model.state_dict(), path)
    assert not is_checkpoint(path)
    save_checkpoint(path, STANDING, task=a_task())
    assert is_checkpoint(path)


def test_a_recent_checkpoint_of_another_container_is_not_removed(tmp_path: Path) -> None:
    task = "a.task-1"
    for day, name in enumerate(("1-0123abcd", f"{os.getpid()}-0123abcd", "9999999-0123abcd", "9999999")):
        path = written(tmp_path, f"{task}-2026010{day + 1}T000000-{name}.pt", age=10 - day)
        partial_path(path).write_bytes(b"half")
        os.utime(path)
    before = set(tmp_path.iterdir())
    current = written(tmp_path, new_checkpoint(tmp_path, task).name, age=0)
    remove_older(tmp_path, task, current)
    assert set(tmp_path.iterdir()) == {*before, current}
    for path in before:
        os.utime(path, (time.time() - FOREIGN_AGE_S - 60,) * 2)
    remove_older(tmp_path, task, current)
    assert len(set(tmp_path.iterdir())) == 2, "this run's checkpoint and another run's"


def test_the_checkpoint_of_an_active_run_is_not_removed(tmp_path: Path) -> None:
    task = "a.task-1"
    names = [f"{task}-2026010{day}T000000-999999{day}-{process_space()}.pt" for day in (1, 2, 3)]
    paths = [written(tmp_path, name, age=20 - day) for day, name in enumerate(names)]
    current = written(tmp_path, new_checkpoint(tmp_path, task).name, age=0)
    with locked(paths[0]):
        remove_older(tmp_path, task, current)
    assert [path.exists() for path in paths] == [True, False, True]
