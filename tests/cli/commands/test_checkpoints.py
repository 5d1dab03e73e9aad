"""Where `batchcal train` writes its checkpoint, decided before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from batchcal.cli.commands.checkpoints import choose
from batchcal.cli.invocation import Invocation
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import UsageError
from batchcal.core.progress import Recorded
from batchcal.core.readers import OFF
from batchcal.core.settings import SettingSource
from batchcal.train.checkpoints.checkpoint import Standing, save_checkpoint
from batchcal.train.checkpoints.files import partial_path, process_space
from batchcal.values.settings import Settings
from batchcal.workload.spec.reference import TaskReference
from tests.support.events import training_event
from tests.support.locks import locked
from tests.support.tasks import a_task

STANDING = Standing(seed=0, effective_batch=10, train_samples=100, epoch=0, group=0)


def invocation(folder: Path, tables: Mapping[str, object] | None = None, **flags: str) -> Invocation:
    files = [SettingSource("batchcal.toml", {"train": dict(tables or {})})]
    reference = TaskReference(spec="train.py:task", directory=str(folder))
    return Invocation(settings=Settings(flags=flags, environ={}, files=files), reference=reference, directory=folder)


def test_each_run_has_its_own_checkpoint_in_the_project_folder(tmp_path: Path) -> None:
    kept = choose(invocation(tmp_path), resume=False, messages=Messages(quiet=True))
    assert kept.path is not None
    assert kept.path.parent == tmp_path / ".batchcal"
    assert kept.path.name.startswith("train.task-")
    assert not kept.resume
    assert (tmp_path / ".batchcal" / ".gitignore").read_text() == "*\n"


def test_resume_continues_the_newest_checkpoint_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = choose(invocation(tmp_path), resume=True, messages=Messages())
    assert "no checkpoint of train.py:task yet" in capsys.readouterr().err
    assert first.path is not None
    save_checkpoint(first.path, STANDING, task=a_task())
    again = choose(invocation(tmp_path), resume=True, messages=Messages())
    assert (again.path, again.resume) == (first.path, True)
    assert str(first.path) in capsys.readouterr().err


@pytest.mark.parametrize("tables", [{"checkpoint": False}, {"checkpoint": "off"}])
def test_checkpoints_can_be_disabled(tables: Mapping[str, object], tmp_path: Path) -> None:
    for off in (invocation(tmp_path, tables), invocation(tmp_path, checkpoint=OFF)):
        assert choose(off, resume=False, messages=Messages()).path is None
        with pytest.raises(UsageError, match="--resume needs checkpoints"):
            choose(off, resume=True, messages=Messages())


def test_a_file_that_is_not_a_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    source = tmp_path / "train.py"
    source.write_text("def task(): ...\n")
    with pytest.raises(UsageError, match=r"train\.py is an existing file that is not a checkpoint"):
        choose(invocation(tmp_path, checkpoint="train.py"), resume=False, messages=Messages())
    save_checkpoint(tmp_path / "run.pt", STANDING, task=a_task())
    assert choose(invocation(tmp_path, checkpoint="run.pt"), resume=False, messages=Messages()).path == tmp_path / "run.pt"


def test_an_unwritable_checkpoint_path_is_an_immediate_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for given in ("file/run.pt", "/proc/nowhere/run.pt"):
        with pytest.raises(UsageError, match="cannot be written"):
            choose(invocation(tmp_path, checkpoint=given), resume=False, messages=Messages())


def test_the_first_checkpoint_of_a_run_deletes_old_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / ".batchcal"
    kept = choose(invocation(tmp_path), resume=False, messages=Messages())
    assert kept.path is not None
    assert kept.task is not None
    older = [folder / f"{kept.task}-2026010{day}T000000-999999{day}-{process_space()}.pt" for day in (1, 2, 3)]
    for path in (*older, kept.path):
        save_checkpoint(path, STANDING, task=a_task())
    heard = Recorded()
    view = kept.with_cleanup(heard)
    view.event(training_event("training_started", {}))
    assert all(path.exists() for path in older)
    view.event(training_event("checkpoint_saved", {}))
    assert [path.exists() for path in older] == [False, False, True]
    assert [name for name, _ in heard.events] == ["training_started", "checkpoint_saved"]


def test_the_checkpoint_of_an_active_run_is_refused(tmp_path: Path) -> None:
    given = tmp_path / "run.pt"
    save_checkpoint(given, STANDING, task=a_task())
    default = choose(invocation(tmp_path), resume=False, messages=Messages(quiet=True)).path
    assert default is not None
    save_checkpoint(default, STANDING, task=a_task())
    with locked(given), locked(default):
        for resume, active in (
            (False, invocation(tmp_path, checkpoint="run.pt")),
            (True, invocation(tmp_path, checkpoint="run.pt")),
            (True, invocation(tmp_path)),
        ):
            with pytest.raises(UsageError, match=f"a run that is still active .process {os.getpid()}.") as caught:
                choose(active, resume=resume, messages=Messages(quiet=True))
            assert "--checkpoint OTHER.pt" in caught.value.try_
    partial_path(given).write_bytes(b"")
    with locked(partial_path(given)), pytest.raises(UsageError, match="still active"):
        choose(invocation(tmp_path, checkpoint="run.pt"), resume=False, messages=Messages(quiet=True))
    assert partial_path(given).exists(), "the other run writes it"
