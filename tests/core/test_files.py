"""Writing that leaves the old file or the new one, and reading that neither blocks nor follows nor trusts."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

import pytest

from batchcal.core.errors import Interrupted
from batchcal.core.files import LEFTOVER_AGE_S, FileRefused, leftovers, read_guarded, sync_folder, write_atomically
from tests.support.faults import files_of_at_most

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def refusal(path: Path, *, max_bytes: int = 1000) -> str:
    with pytest.raises(FileRefused) as refused:
        read_guarded(path, max_bytes=max_bytes)
    assert str(refused.value)
    return refused.value.reason


def test_an_atomic_write_replaces_the_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(b"a much longer old value")

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_private_by_default_and_respects_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "secret", b"")
        write_atomically(tmp_path / "shared", b"", mode=0o644)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640


def test_a_write_replaces_a_symlink_and_does_not_modify_its_target(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    path = tmp_path / "value.json"
    path.symlink_to(precious)

    write_atomically(path, b"new")

    assert precious.read_bytes() == b"precious"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()


def test_an_interrupted_write_keeps_the_old_file_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(b"old")

    with files_of_at_most(4096), pytest.raises(OSError, match="too large"):
        write_atomically(path, b"x" * 10_000)

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_at_the_target_path_is_not_modified(tmp_path: Path) -> None:
    folder = tmp_path / "value.json"
    (folder / "inside").mkdir(parents=True)

    with pytest.raises(OSError, match="directory"):
        write_atomically(folder, b"new")

    assert (folder / "inside").is_dir()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_write_into_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "value.json", b"new")


def test_temporary_files_of_killed_writers_are_removed_after_an_hour(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    old, young, others = (
        tmp_path / name for name in (".value.json.aa.batchcal-tmp", ".value.json.bb.batchcal-tmp", ".value.json.swp")
    )
    for name in (old, young, others):
        name.write_bytes(b"torn")
    long_ago = time.time() - LEFTOVER_AGE_S - 10
    os.utime(old, (long_ago, long_ago))
    os.utime(others, (long_ago, long_ago))

    write_atomically(path, b"new")

    assert not old.exists()
    assert list(leftovers(path)) == [young]
    assert others.exists()


def test_a_folder_with_the_name_of_a_temporary_file_does_not_block_a_write(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    trap = tmp_path / ".value.json.aa.batchcal-tmp"
    trap.mkdir()
    os.utime(trap, (0, 0))

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert trap.is_dir()


def test_a_folder_that_does_not_support_sync_is_not_an_error() -> None:
    sync_folder(Path("/proc/self"))  # answers EINVAL


def test_a_valid_file_is_read_completely(tmp_path: Path) -> None:
    path = tmp_path / "value"
    write_atomically(path, b"x" * 1000)

    assert read_guarded(path, max_bytes=1000) == (b"x" * 1000, (), 0o600)


def test_a_missing_file_is_rejected_as_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert refusal(tmp_path / "value") == "missing"
    assert refusal(tmp_path / "file" / "value") == "missing"


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"real")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")

    assert [refusal(tmp_path / name) for name in ("link", "dangling", "circle")] == ["not-regular"] * 3


def test_a_symlinked_folder_is_accepted_but_a_symlink_loop_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "value").write_bytes(b"real")
    (tmp_path / "way").symlink_to("folder")
    (tmp_path / "circle").symlink_to("circle")

    assert read_guarded(tmp_path / "way" / "value", max_bytes=10).data == b"real"
    assert refusal(tmp_path / "circle" / "value") == "unreadable"


def test_a_fifo_a_device_a_folder_and_a_socket_are_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))  # the name of a socket is at most 107 bytes
        names = (tmp_path / "fifo", tmp_path / "folder", tmp_path / "socket", Path("/dev/zero"), Path("/dev/null"))

        assert [refusal(name) for name in names] == ["not-regular"] * 5


def test_a_world_writable_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.touch()
    path.chmod(0o666)

    assert refusal(path) == "world-writable"


def test_a_group_writable_file_is_read_with_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.touch()
    path.chmod(0o660)

    assert "may write" in read_guarded(path, max_bytes=10).notices[0]


def test_a_world_writable_folder_produces_a_notice_unless_it_is_sticky(tmp_path: Path) -> None:
    path = tmp_path / "value"
    write_atomically(path, b"")
    tmp_path.chmod(0o777)
    open_folder = read_guarded(path, max_bytes=10).notices
    tmp_path.chmod(0o1777)
    sticky_folder = read_guarded(path, max_bytes=10).notices

    assert "every user may write the folder" in open_folder[0]
    assert sticky_folder == ()


@needs_root
def test_a_file_of_another_user_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.touch()
    os.chown(path, 12345, -1)

    assert refusal(path) == "foreign-owner"


def test_a_file_above_the_size_limit_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"x" * 11)

    assert refusal(path, max_bytes=10) == "too-large"
    assert refusal(Path("/proc/self/status"), max_bytes=10) == "too-large"  # says that its size is 0


def test_a_file_with_a_read_error_is_rejected_as_unreadable() -> None:
    assert refusal(Path("/proc/self/mem")) == "unreadable"  # address 0: EIO


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_an_invalid_file_name_is_rejected_as_unreadable(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name) == "unreadable"


def test_a_signal_during_the_creation_of_a_file_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = tmp_path / "file", os.open

    def interrupted(name: str | Path, flags: int, mode: int = 0o777) -> int:
        opened(name, flags, mode)
        raise Interrupted(15)

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(Interrupted):
        write_atomically(path, b"data")
    assert not list(tmp_path.iterdir())
