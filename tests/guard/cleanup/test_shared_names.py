"""Sockets and semaphores are named after the process that made them, and removed by whoever finds it dead."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.guard.cleanup import shared_names
from batchcal.guard.cleanup.shared_names import own_shared_names, own_worker_folder, sweep_abandoned, sweep_shared_memory

SPACE = str(Path("/proc/self/ns/pid").stat().st_ino) if sys.platform == "linux" else ""
DEAD = 2**22 + 1
"""Above the largest process id."""
MADE_AND_KILLED = """
import multiprocessing, os, pathlib, signal, sys
from batchcal.guard.cleanup.shared_names import own_shared_names
own_shared_names(pathlib.Path(sys.argv[1]))
event = multiprocessing.get_context("spawn").Event()
print(os.getpid(), flush=True)
os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_names, "SHARED_MEMORY", tmp_path)
    return tmp_path


def named(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_only_shared_memory_names_of_our_dead_processes_are_removed(shared_memory: Path) -> None:
    ours = ["torch_41_1_2", "torch_42_7_0", f"sem.batchcal-{SPACE}-42-abcdefgh"]
    others = [
        "torch_43_1_2",
        "torch_x_1",
        "torch_42",
        "sem.mp-abcdefgh",
        "sem.batchcal-1-42-x",
        f"sem.batchcal-{SPACE}-43-x",
        "41",
    ]
    named(shared_memory, *ours, *others)
    assert sweep_shared_memory({41, 42}) == 3
    assert sorted(path.name for path in shared_memory.iterdir()) == sorted(others)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_semaphores_of_dead_processes_are_removed(shared_memory: Path) -> None:
    stays = [
        f"sem.batchcal-{SPACE}-{os.getpid()}-abcdefgh",
        f"sem.batchcal-1-{DEAD}-abcdefgh",
        f"torch_{DEAD}_1_2",
        "sem.mp-abcdefgh",
    ]
    named(shared_memory, *stays, f"sem.batchcal-{SPACE}-{DEAD}-abcdefgh")
    sweep_abandoned()
    assert sorted(path.name for path in shared_memory.iterdir()) == sorted(stays)


def test_cleanup_without_a_shared_memory_folder_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_names, "SHARED_MEMORY", tmp_path / "none")
    assert sweep_shared_memory({1}) == 0
    sweep_abandoned()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_worker_folders_of_a_killed_parent_are_removed(shared_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shared_memory))
    dead = shared_memory / f"pymp-batchcal-{SPACE}-{DEAD}-abcdefgh"
    stay = [f"pymp-batchcal-{SPACE}-{os.getpid()}-abcdefgh", f"pymp-batchcal-1-{DEAD}-abcdefgh", "pymp-abcdefgh"]
    for folder in (dead, *(shared_memory / name for name in stay)):
        folder.mkdir()
    sweep_abandoned()
    assert sorted(path.name for path in shared_memory.iterdir()) == sorted(stay)


def test_a_worker_folder_is_removed_with_its_owner(monkeypatch: pytest.MonkeyPatch, config: dict[str, object]) -> None:
    place = Path(tempfile.mkdtemp(prefix="bc-", dir="/tmp"))  # short, as the path of a socket must be
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    folder, owner = own_worker_folder(), threading.Event()
    assert folder is not None
    with folder:
        assert str(config["tempdir"]).startswith(str(place))
        assert own_worker_folder() is None, "there is one"
    folder.goes_with(owner)
    assert not config["tempdir"]
    assert len(list(place.iterdir())) == 1
    del owner
    assert not list(place.iterdir())
    place.rmdir()


@pytest.fixture
def config() -> Iterator[dict[str, object]]:
    config = vars(multiprocessing.current_process())["_config"]
    before = dict(config)
    yield config
    config.clear()
    config.update(before)


def test_shared_names_contain_the_id_of_this_process(config: dict[str, object]) -> None:
    own_shared_names(Path("/tmp/short"))
    assert config["tempdir"] == "/tmp/short"
    own_shared_names(Path("/tmp") / ("long" * 30))
    assert config["tempdir"] == "/tmp/short", "a socket has no room there"
    if sys.platform == "linux":
        assert config["semprefix"] == f"/batchcal-{SPACE}-{os.getpid()}"


@pytest.mark.child
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm")
def test_the_semaphores_of_a_killed_process_are_removed_by_its_id(tmp_path: Path) -> None:
    """Its resource tracker, which would remove them, is killed with it."""
    command = [sys.executable, "-c", MADE_AND_KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    pid = int(done.stdout)
    left = list(Path("/dev/shm").glob(f"sem.batchcal-{SPACE}-{pid}-*"))
    assert left
    assert sweep_shared_memory({pid}) == len(left)
    assert not any(path.exists() for path in left)
