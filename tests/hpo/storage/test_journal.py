"""A journal whose last line was cut off goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import optuna
import pytest

from batchcal.core.errors import UsageError
from batchcal.hpo.storage import journal
from batchcal.hpo.storage.backend import open_storage
from batchcal.hpo.storage.journal import MendingLock, lock_link, mend, remove_abandoned
from batchcal.hpo.study import open_study
from tests.hpo.workers.test_assignments import a_blueprint

LINE = b'{"op_code":0,"study_name":"first"}\n'


def test_a_study_journal_keeps_all_trials_after_a_truncated_line(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="first", storage=open_storage(path))
    study.add_trial(optuna.create_trial(value=1.0))
    with path.open("ab") as file:
        file.write(b'{"op_code":5,"worker')
    again = optuna.load_study(study_name="first", storage=open_storage(path))
    again.add_trial(optuna.create_trial(value=2.0))
    seen = optuna.load_study(study_name="first", storage=open_storage(path))
    assert [one.value for one in seen.get_trials()] == [1.0, 2.0]
    for line in path.read_bytes().splitlines():
        json.loads(line)
    study.add_trial(optuna.create_trial(value=3.0))
    assert len(seen.get_trials()) == 3, "who had it open goes on, too"


@pytest.mark.parametrize(
    ("held", "left"),
    [(b"", b""), (LINE, LINE), (LINE + b"b", LINE), (LINE[:6], b""), (LINE[:-1], b""), (LINE + b"x" * 200_000, LINE)],
)
def test_mend_removes_only_an_incomplete_last_line(tmp_path: Path, held: bytes, left: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(held)
    mend(path)
    assert path.read_bytes() == left


HOLDS: Final = """
import os, sys
from batchcal.hpo.storage.journal import MendingLock
MendingLock(sys.argv[1]).acquire()
os.kill(os.getpid(), 9)
"""


@pytest.mark.child
def test_the_journal_lock_of_a_killed_process_is_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("study.journal")
    study = optuna.create_study(study_name="first", storage=open_storage(path))
    subprocess.run([sys.executable, "-c", HOLDS, str(path)], check=False, cwd=tmp_path)
    assert lock_link(path).is_symlink(), "the process died with the lock"
    began = time.monotonic()
    study.add_trial(optuna.create_trial(value=1.0))
    assert time.monotonic() - began < 5
    assert not lock_link(path).is_symlink()
    subprocess.run([sys.executable, "-c", HOLDS, str(path)], check=False, cwd=tmp_path)
    assert remove_abandoned(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["study.journal"]


def test_a_writer_waits_for_the_journal_lock_of_a_running_process(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(LINE)
    first, second, order = MendingLock(str(path)), MendingLock(str(path)), []
    first.acquire()
    assert not remove_abandoned(path)
    thread = threading.Thread(target=lambda: order.append(second.acquire()))
    thread.start()
    thread.join(0.3)
    assert order == []
    first.release()
    thread.join(10)
    assert order == [True]
    first.release()
    assert lock_link(path).is_symlink(), "the lock of another holder stays"
    second.release()
    assert not lock_link(path).is_symlink()


def test_a_journal_lock_of_an_unknown_owner_is_removed_after_a_delay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FOREIGN_GRACE_S", 0.2)
    path = tmp_path / "study.journal"
    path.write_bytes(LINE)
    lock_link(path).symlink_to("relative/and/dangling")
    lock = MendingLock(str(path))
    lock.acquire()
    lock.release()
    assert not lock_link(path).is_symlink()


def test_a_file_that_is_not_a_journal_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("to be kept", encoding="utf-8")
    with pytest.raises(UsageError, match="is an existing file that is not a journal of a study"):
        open_study(a_blueprint(storage=str(path)))
    assert path.read_text(encoding="utf-8") == "to be kept"
