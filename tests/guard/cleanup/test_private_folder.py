"""The folder for children's files: private, removed by whoever is left, and nothing of the user's is taken for it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from batchcal.core.errors import Interrupted
from batchcal.guard.cleanup.private_folder import OWNER, PrivateFolder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def abandoned(home: PrivateFolder) -> Path:
    """As it is when its owner was killed: the kernel let the lock go, nobody removed the folder."""
    os.close(home._owned)
    home._owned = -1
    return home.path


def test_the_private_folder_is_owner_only_and_completely_removed(temporary: Path) -> None:
    home = PrivateFolder()
    assert home.path.stat().st_mode & 0o777 == 0o700
    home.remove()
    home.remove()
    assert not list(temporary.iterdir())


def test_the_folder_of_a_killed_process_is_removed_by_the_next_process(temporary: Path) -> None:
    left = abandoned(PrivateFolder())
    (left / "child-0").mkdir()
    (left / "child-0" / "arguments.json").write_text("{}", encoding="utf-8")
    home = PrivateFolder()
    assert not left.exists()
    home.remove()


def test_a_folder_in_use_is_kept_regardless_of_its_age(temporary: Path) -> None:
    home = PrivateFolder()
    os.utime(home.path, (0, 0))
    other = PrivateFolder()
    assert home.path.exists()
    assert other.path.exists()
    home.remove()
    other.remove()


def test_a_user_folder_with_the_batchcal_prefix_is_kept(temporary: Path) -> None:
    mine = temporary / "batchcal-results"
    mine.mkdir()
    (mine / "run.csv").write_text("1", encoding="utf-8")
    os.utime(mine, (0, 0))
    (temporary / "batchcal-file").write_text("x", encoding="utf-8")
    PrivateFolder().remove()
    assert (mine / "run.csv").exists()
    assert (temporary / "batchcal-file").exists()


def test_a_symlink_to_a_private_folder_is_not_followed(temporary: Path) -> None:
    real = temporary / "kept"
    real.mkdir()
    (real / OWNER).write_text("", encoding="utf-8")
    (temporary / "batchcal-link").symlink_to(real)
    PrivateFolder().remove()
    assert (real / OWNER).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file away")
def test_a_private_folder_of_another_user_is_kept(temporary: Path) -> None:
    left = abandoned(PrivateFolder())
    shutil.chown(left, user=65534)
    PrivateFolder().remove()
    assert left.exists()


def test_a_signal_during_creation_leaves_no_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupted(descriptor: int, operation: int) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(Interrupted):
        PrivateFolder()
    assert not list(tmp_path.iterdir())
