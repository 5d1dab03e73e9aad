"""Where a calibration lies, and that whatever lies there is answered with a value."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from batchcal.calibration.keys import Key, Trust, find_or_make_trust
from batchcal.calibration.records.undone import Undone
from batchcal.calibration.seal import seal
from batchcal.calibration.stale import Stale, StaleReason
from batchcal.calibration.store import (
    Loaded,
    Missing,
    journal_path,
    load,
    load_fresh,
    lock_path,
    read_again,
    refusal,
    save,
)
from batchcal.core.canonical import JSON, MAX_BYTES
from batchcal.core.errors import NotSaved, exit_code_of
from tests.support.calibrations import MADE_AT, a_calibration, an_environment, fingerprint

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
KEY = Key(b"the key that we made ourselves", configured=False, source="~/.config/batchcal/key")
TRUST = Trust(KEY)
DATA = Path(__file__).parent / "data"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved calibration."""
    place = tmp_path / ".batchcal" / "calibration.json"
    save(a_calibration(), place, key=KEY)
    return place


def reason(path: Path, trust: Trust = TRUST) -> str:
    found = load(path, trust=trust)
    assert isinstance(found, Stale), f"was {type(found).__name__}"
    return found.reason


def test_a_saved_calibration_is_loaded_unchanged(path: Path) -> None:
    assert load(path, trust=TRUST) == Loaded(path=path, calibration=a_calibration())


def test_the_calibration_folder_contains_only_a_gitignore_and_the_calibration(path: Path) -> None:
    assert (path.parent / ".gitignore").read_text() == "*\n"
    assert sorted(name.name for name in path.parent.iterdir()) == [".gitignore", "calibration.json"]


def test_an_existing_gitignore_is_kept_and_other_folders_get_none(path: Path, tmp_path: Path) -> None:
    (path.parent / ".gitignore").write_text("mine\n")
    save(a_calibration(), path, key=KEY)
    save(a_calibration(), tmp_path / "shared" / "calibration.json", key=KEY)

    assert (path.parent / ".gitignore").read_text() == "mine\n"
    assert [name.name for name in (tmp_path / "shared").iterdir()] == ["calibration.json"]


def test_a_calibration_is_readable_by_all_and_writable_by_its_owner(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 & ~_umask()


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_calibration_that_does_not_exist_is_missing(tmp_path: Path) -> None:
    assert load(tmp_path / "calibration.json", trust=TRUST) == Missing(path=tmp_path / "calibration.json")
    assert isinstance(load(tmp_path / "no" / "folder" / "calibration.json", trust=TRUST), Missing)


def test_a_symlink_is_rejected_and_its_target_is_not_modified(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(path)
    before = path.read_bytes()
    answer = reason(link)
    save(a_calibration(status="partial"), link, key=KEY)

    assert answer == "not-ours"
    assert path.read_bytes() == before


def test_a_fifo_a_device_and_a_folder_are_rejected_as_calibrations(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    assert [reason(place) for place in (tmp_path / "fifo", Path("/dev/zero"), tmp_path)] == ["not-ours"] * 3


def test_a_world_writable_calibration_is_rejected(path: Path) -> None:
    path.chmod(0o666)

    assert reason(path) == "not-ours"


@needs_root
def test_a_calibration_of_another_user_is_rejected(path: Path) -> None:
    os.chown(path, 12345, -1)

    assert reason(path) == "not-ours"


def test_a_group_writable_calibration_is_accepted_with_a_notice(path: Path) -> None:
    path.chmod(0o664)
    path.parent.chmod(0o775)
    found = load(path, trust=TRUST)

    assert isinstance(found, Loaded)
    assert [notice.startswith("group ") for notice in found.notices] == [True]


def test_a_calibration_in_a_world_writable_folder_is_accepted_with_a_notice(path: Path) -> None:
    path.parent.chmod(0o777)
    found = load(path, trust=TRUST)

    assert isinstance(found, Loaded)
    assert "every user may write" in found.notices[0]


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff" * 64, b"x" * (MAX_BYTES + 1)])
def test_a_file_with_invalid_content_is_malformed(path: Path, data: bytes) -> None:
    path.write_bytes(data)

    assert reason(path) == "malformed"


def test_the_policy_decides_if_a_file_signed_elsewhere_is_accepted(path: Path) -> None:
    here = find_or_make_trust({})
    found = load(path, trust=here)

    assert isinstance(found, Loaded)
    assert f"signed with another key, '{KEY.key_id}'" in found.notices[0]
    assert reason(path, Trust(here.key, require_signature=True)) == "bad-signature"


def test_load_fresh_returns_a_fresh_calibration_or_the_stale_reason(path: Path) -> None:
    hour_later = MADE_AT + timedelta(hours=1)
    fresh = load_fresh(path, fingerprint(), at=hour_later, trust=TRUST)
    late = load_fresh(path, fingerprint(), at=MADE_AT + timedelta(days=8), trust=TRUST)
    other = load_fresh(path, fingerprint(cpu="x"), at=hour_later, trust=TRUST, environment=an_environment())
    missing = load_fresh(path.with_name("x"), fingerprint(), at=hour_later, trust=TRUST)
    path.write_bytes(b"{}")
    broken = load_fresh(path, fingerprint(), at=hour_later, trust=TRUST)

    assert isinstance(fresh, Loaded)
    assert [isinstance(found, Stale) and found.reason for found in (late, other, broken)] == ["expired", "other-cpu", "malformed"]
    assert isinstance(missing, Missing)


def test_a_calibration_of_format_1_can_be_loaded() -> None:
    """The file was written by the first release; it is never written anew."""
    trust = Trust(Key(b"the key of the kept calibrations", configured=True, source="tests"))
    found = load(DATA / "format-1.json", trust=trust)

    assert isinstance(found, Loaded)
    assert found.notices == ()
    capacity = found.calibration.findings[0].train
    assert (found.calibration.format, capacity.batch, capacity.limited_by) == (2, 512, "memory")
    assert len(found.calibration.measurements) == 6
    written = found.calibration.model_dump(mode="json", exclude_unset=True) | {"format": 1}
    assert seal(written, key=trust.key) == (DATA / "format-1.json").read_bytes(), "nothing is lost"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cpu under default, train: bisect 528", "search"),
        ("cpu under default: no time was left", "policy"),
        ("the race of threads and workers is not settled", "threads-and-workers"),
        ("the race of threads and workers: no time was left", "threads-and-workers"),
        ("the rehearsal: no time was left", "rehearsal"),
        ("the rehearsal of no plan went well", "rehearsal"),
        ("stopped by signal 2", "stopped"),
        ("the time limit of 20 s (--time-limit) ended while the task was examined", "stopped"),
        ("cpu under default: no kernel for this", "policy"),
        ("cpu under tcmalloc, eval: two runs were inconclusive", "search"),
    ],
)
def test_undone_sentences_of_format_1_become_structured_parts(path: Path, text: str, part: str) -> None:
    old: dict[str, JSON] = a_calibration(status="unsettled").model_dump(mode="json") | {"format": 1, "undone": [text]}
    path.write_bytes(seal(old, key=KEY))

    found = load(path, trust=TRUST)

    assert isinstance(found, Loaded)
    assert found.calibration.undone == (Undone.model_validate({"part": part, "text": text}),)
    assert read_again(path).undone == found.calibration.undone


def test_a_file_of_format_1_with_invalid_undone_sentences_is_malformed(path: Path) -> None:
    for wrong in ("all of it", [3], {"part": "search"}):
        old: dict[str, JSON] = a_calibration().model_dump(mode="json") | {"format": 1, "undone": wrong}
        path.write_bytes(seal(old, key=KEY))
        assert reason(path) == "malformed"


def test_a_calibration_too_large_to_load_is_not_saved_and_the_old_one_is_kept(path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(NotSaved, match="the file would have"):
        save(a_calibration(notes=("x" * MAX_BYTES,)), path, key=KEY)

    assert path.read_bytes() == before


def test_an_error_for_a_folder_that_cannot_be_created_suggests_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotSaved) as error:
        save(a_calibration(), tmp_path / "file" / "calibration.json", key=KEY)

    assert exit_code_of(error.value) == 7
    assert "--output" in error.value.try_
    assert "BATCHCAL_CALIBRATION" in error.value.try_


def test_the_journal_and_the_lock_are_next_to_the_calibration() -> None:
    path = Path("/x/.batchcal/calibration.json")

    assert journal_path(path) == Path("/x/.batchcal/calibration.journal.jsonl")
    assert lock_path(path) == Path("/x/.batchcal/calibration.json.lock")


REASONS: list[StaleReason] = ["expired", "newer-format", "not-ours", "bad-signature", "unsigned", "malformed", "other-task"]


@pytest.mark.parametrize("why", REASONS)
def test_a_stale_calibration_is_an_error_with_its_reason_and_a_command(why: StaleReason) -> None:
    error = refusal(Stale(reason=why, detail="as it is"), Path("/x/c.json"))

    assert exit_code_of(error) == 3
    assert why in error.what
    assert error.known == "as it is"
    assert error.try_


def test_a_missing_calibration_is_an_error_that_suggests_calibrate() -> None:
    error = refusal(Missing(path=Path("/x/c.json")), Path("/x/c.json"))

    assert exit_code_of(error) == 3
    assert "batchcal calibrate" in error.try_
    assert str(Missing(path=Path("/x/c.json"))) == "there is no /x/c.json"
