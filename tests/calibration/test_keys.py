"""Where keys come from, who may see them, and that none is ever shown."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from batchcal.calibration.keys import Key, Trust, find_or_make_trust, find_trust, key_from_file, make_own_key, own_key
from batchcal.core.errors import UsageError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
SECRET = b"0123456789abcdef"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(0o400)
    return path


def refusal(path: Path) -> UsageError:
    with pytest.raises(UsageError) as refused:
        key_from_file(path)
    assert refused.value.try_
    return refused.value


def test_a_configured_key_is_read_and_requires_signatures(key_file: Path) -> None:
    trust = find_trust({"BATCHCAL_KEY_FILE": str(key_file)})

    assert trust.key == Key(SECRET, configured=True, source=str(key_file))
    assert trust.demands_signature


def test_a_mounted_secret_can_be_symlinked_and_group_readable(tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "key").write_bytes(SECRET)
    (tmp_path / "..2026" / "key").chmod(0o440)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "key").symlink_to("..data/key")

    assert key_from_file(tmp_path / "key").secret == SECRET


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o777])
def test_a_key_that_other_users_can_read_or_write_is_rejected(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)

    assert refusal(key_file).known


def test_a_short_key_is_rejected(key_file: Path) -> None:
    key_file.chmod(0o600)
    key_file.write_bytes(SECRET[:-1])

    assert "15 bytes; a key needs at least 16" in refusal(key_file).known


def test_a_missing_key_is_reported_as_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere").what


def test_a_key_that_is_not_a_regular_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "circle").symlink_to("circle")

    assert "not a regular file" in refusal(tmp_path / "fifo").known
    assert refusal(tmp_path / "circle").known
    assert refusal(tmp_path).known


@needs_root
def test_a_key_of_another_user_is_rejected(key_file: Path) -> None:
    os.chown(key_file, 12345, -1)

    assert "12345" in refusal(key_file).known


def test_a_reader_creates_no_key_and_requires_no_signature(own_home: Path) -> None:
    assert find_trust({}) == Trust(None)
    assert not find_trust({}).demands_signature
    assert find_trust({}, require_signature=True).demands_signature
    assert [path for path in own_home.rglob("*") if path.is_file()] == []


def test_a_writer_creates_a_private_key_in_the_config_folder_and_reuses_it(own_home: Path) -> None:
    made = find_or_make_trust({})
    path = own_home / ".config" / "batchcal" / "key"

    assert made.key is not None
    assert path.read_bytes() == made.key.secret
    assert len(made.key.secret) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not made.demands_signature
    assert find_or_make_trust({}) == made == find_trust({})
    assert list(path.parent.iterdir()) == [path]


def test_a_configured_key_takes_precedence_over_the_generated_key(key_file: Path) -> None:
    find_or_make_trust({})

    assert find_or_make_trust({"BATCHCAL_KEY_FILE": str(key_file)}).key == key_from_file(key_file)


def test_threads_that_create_a_key_concurrently_get_the_same_key(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    made: list[Key | None] = []

    def make() -> None:
        together.wait()
        made.append(make_own_key(tmp_path / "config"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 8
    assert set(made) == {own_key(tmp_path / "config")} != {None}
    assert [path.name for path in (tmp_path / "config").iterdir()] == ["key"]


def test_a_generated_key_that_is_readable_by_others_or_truncated_is_not_used(tmp_path: Path) -> None:
    assert make_own_key(tmp_path) is not None
    (tmp_path / "key").chmod(0o644)
    seen_by_others = (own_key(tmp_path), make_own_key(tmp_path))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key").write_bytes(b"short")

    assert seen_by_others == (None, None)
    assert own_key(tmp_path) is None


def test_no_key_is_created_if_the_config_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(b"a file where the folder should be")

    assert make_own_key(tmp_path / "config") is None
    assert find_or_make_trust({}, folder=tmp_path / "config") == Trust(None)


def test_a_key_has_an_id_and_its_secret_is_never_printed() -> None:
    key = Key(SECRET, configured=True, source="/key")

    assert "0123456789abcdef" not in repr(key) + str(Trust(key)) + key.key_id
    assert SECRET.hex() not in repr(key) + key.key_id
    assert key.key_id != Key(SECRET + b"!", configured=True, source="/key").key_id


def test_a_signature_is_valid_only_for_its_document_kind() -> None:
    key = Key(SECRET, configured=True, source="")

    assert key.mac("calibration", b"data") != key.mac("journal", b"data")
    assert key.mac("calibration", b"data") == key.mac("calibration", b"data")
