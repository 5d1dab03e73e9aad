"""Whether a worker lives, as told by its lock: for who cannot see its process."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.hpo.storage.presence import LOCKING, file_system_of, has_ended, identity, present, sweep

ELSEWHERE = "gone-5d8f:0badf00d:4026531836:12:345"
"""A worker in a container of another name."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if file_system_of(tmp_path) not in LOCKING:
        pytest.skip(f"a lock on {file_system_of(tmp_path)} tells nothing")
    return tmp_path / "first.journal.workers"


def died(worker: str, folder: Path) -> None:
    """Leaves its lock as a process does that is killed."""
    with pytest.raises(SystemExit), present(worker, folder):
        raise SystemExit


def test_a_process_identity_distinguishes_running_and_ended_processes() -> None:
    host, boot, space, pid, began = identity().rsplit(":", 4)
    assert not has_ended(identity(), None)
    assert has_ended(f"{host}:{boot}:{space}:{pid}:{int(began) - 1}", None), "another process had its number"
    assert has_ended(f"other:{boot}:{space}:{pid}:1", None), "a host may change its name"
    assert not has_ended(f"{host}:00000000:{space}:{pid}:{began}", None), "another machine may have the same name"
    assert not has_ended(f"{host}:{boot}:1:{pid}:1", None), "nobody here sees the processes of another container"


def test_a_worker_of_another_container_has_ended_when_its_lock_is_free(folder: Path) -> None:
    assert not has_ended(ELSEWHERE, folder), "it has none: nobody can tell"
    with present(ELSEWHERE, folder):
        assert not has_ended(ELSEWHERE, folder)
        assert not has_ended(ELSEWHERE, folder), "to have looked changes nothing"
    died(ELSEWHERE, folder)
    assert has_ended(ELSEWHERE, folder)


def test_a_lock_on_a_network_file_system_is_inconclusive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died(ELSEWHERE, folder)
    monkeypatch.setattr("batchcal.hpo.storage.presence.file_system_of", lambda path: "nfs4")
    assert not has_ended(ELSEWHERE, folder)


def test_a_worker_that_ends_normally_removes_its_lock_file(folder: Path) -> None:
    with present(ELSEWHERE, folder):
        pass
    assert list(folder.iterdir()) == []


def test_sweep_keeps_locks_of_running_and_listed_workers(folder: Path) -> None:
    died(ELSEWHERE, folder)
    died(f"{ELSEWHERE}6", folder)
    with present(identity(), folder):
        sweep(folder, [ELSEWHERE])
        assert len(list(folder.iterdir())) == 2
        assert has_ended(ELSEWHERE, folder)
        sweep(folder, [])
        assert len(list(folder.iterdir())) == 1, "that of one who lives"


def test_an_unwritable_lock_folder_does_not_stop_a_worker(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    worked = False
    with present(ELSEWHERE, tmp_path / "file" / "workers"):
        worked = True
    assert worked
    assert not has_ended(ELSEWHERE, tmp_path / "file" / "workers"), "nobody can tell"


def test_the_innermost_mount_determines_the_file_system() -> None:
    assert file_system_of(Path("/proc/self/status")) in ("proc", "")
