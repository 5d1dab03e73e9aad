"""Where a calibration will be written is decided before anything is measured, and replaces nothing of the user's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from batchcal.calibration.locate import task_file
from batchcal.calibration.place import Place, check_place, is_calibration, place_for
from batchcal.calibration.store import NAME, cache_folder, save
from batchcal.core.errors import UsageError
from batchcal.workload.spec.reference import TaskReference
from tests.support.calibrations import a_calibration


def task(folder: Path) -> TaskReference:
    return TaskReference(spec="train.py:task", directory=str(folder))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project; cache and temporary files lie beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    return project


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes the disk of a folder look full to the trial."""
    folders: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if any(path.is_relative_to(folder) for folder in folders):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return folders.append


def no_rest(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if "batchcal-tmp" in path.name]


def refused(path: Path, name: str = "--output") -> UsageError:
    with pytest.raises(UsageError) as error:
        check_place(path, name=name)
    assert error.value.what.startswith(f"{name} {path}")
    assert error.value.try_
    return error.value


@pytest.mark.parametrize("content", ["import torch\n", "{}", '{"kind": "plan"}', '[1, "kind": "calibration"]', "\x00\x01"])
def test_a_file_that_is_not_a_calibration_is_never_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.py"
    path.write_text(content)
    error = refused(path)
    assert "is an existing file that is not a calibration" in error.what
    assert str(tmp_path / NAME) in error.try_
    assert path.read_text() == content


def test_a_damaged_calibration_or_an_empty_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.touch()
    check_place(path, name="--output")
    save(a_calibration(), path)
    check_place(path, name="--output")
    path.write_bytes(path.read_bytes()[:-100])
    check_place(path, name="--output")
    assert is_calibration(b'{"kind":"calibration"}')
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.json"]


def test_folders_links_devices_and_paths_below_a_file_are_rejected(tmp_path: Path) -> None:
    assert refused(tmp_path).try_ == f"--output {tmp_path / NAME}"
    target = tmp_path / "elsewhere.json"
    target.touch()
    (tmp_path / "link").symlink_to(target)
    assert refused(tmp_path / "link").try_ == f"--output {target}"
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe").what
    assert "not a regular file" in refused(Path("/dev/null")).what
    assert "not a folder" in refused(target / "c.json").what
    assert "cannot be written" in refused(Path("/proc/nowhere/c.json"), "BATCHCAL_CALIBRATION").what


def test_a_user_file_at_the_journal_path_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "mine.journal.jsonl").write_text('{"my": "notes"}\n')
    with pytest.raises(UsageError) as error:
        check_place(tmp_path / "mine.json", name="--output")
    assert "mine.journal.jsonl is an existing file that is not a journal of a calibration" in error.value.what
    (tmp_path / "mine.journal.jsonl").write_text('{"check":"","entry":{}}\n')
    check_place(tmp_path / "mine.json", name="--output")


def test_an_explicit_output_on_a_full_disk_is_rejected_immediately(tmp_path: Path, full: Callable[[Path], None]) -> None:
    full(tmp_path)
    assert "the disk is full" in refused(tmp_path / "c.json").what
    assert no_rest(tmp_path)


def test_the_default_path_falls_back_with_a_notice_for_later_commands(home: Path, full: Callable[[Path], None]) -> None:
    own = home / ".batchcal" / task_file(task(home))
    assert place_for(task(home), {}) == Place(own)
    full(home)
    cached = place_for(task(home), {})
    assert cached.path == cache_folder(home) / task_file(task(home))
    assert f"BATCHCAL_CALIBRATION={cached.path}" in cached.notices[0]
    assert "the disk is full" in cached.notices[0]
    full(home.parent / "cache")
    temporary = place_for(task(home), {})
    assert temporary.path.is_relative_to(home.parent / "temporary")
    assert f"BATCHCAL_CALIBRATION={temporary.path}" in temporary.notices[0]
    full(home.parent / "temporary")
    with pytest.raises(UsageError, match="no folder for the calibration can be written"):
        place_for(task(home), {})
    assert no_rest(home.parent)


def test_a_calibration_of_a_read_only_project_is_stored_in_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    place = place_for(task(home), {})
    assert place.path == cache_folder(home) / task_file(task(home))
    assert "later commands find it there" in place.notices[0]


def test_an_environment_variable_is_checked_like_a_flag(home: Path) -> None:
    mine = home / "mine.py"
    mine.write_text("x = 1\n")
    with pytest.raises(UsageError, match=r"BATCHCAL_CALIBRATION .*mine.py is an existing file"):
        place_for(task(home), {"BATCHCAL_CALIBRATION": "mine.py"})
    assert place_for(task(home), {"BATCHCAL_CALIBRATION": "mine.py"}, home / "c.json").path == home / "c.json"
    with pytest.raises(UsageError, match=r"--calibration .*mine.py"):
        place_for(task(home), {}, mine, name="--calibration")


def test_a_damaged_file_in_the_batchcal_folder_can_be_replaced(home: Path) -> None:
    own = home / ".batchcal" / task_file(task(home))
    own.parent.mkdir()
    own.write_text("half of a calib")
    assert place_for(task(home), {}).path == own
