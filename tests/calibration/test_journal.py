"""A killed calibration loses one probe at most, and what is resumed is of this machine, this task and this week."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest

from batchcal.calibration.journal import Journal, Past, read
from batchcal.calibration.keys import Key
from batchcal.calibration.records.speed import RacedPolicies, Speeds, StepTime
from batchcal.calibration.schema import Measurement
from batchcal.core.errors import NotSaved
from tests.support.calibrations import MADE_AT, fingerprint, measurement, measurements, options
from tests.support.faults import files_of_at_most

KEY = Key(b"the key that we made ourselves", configured=False, source="")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".batchcal" / "calibration.journal.jsonl"


def opened(path: Path, *, restart: bool = False, key: Key | None = None, hours: float = 0) -> Journal:
    at = MADE_AT + timedelta(hours=hours)
    return Journal.open(path, fingerprint=fingerprint(), options=options(), at=at, key=key, restart=restart)


def written(path: Path, *some: Measurement, key: Key | None = None) -> None:
    with opened(path, key=key) as journal:
        for one in some or measurements():
            journal.append(one)


def resumed(path: Path, **changes: object) -> tuple[Measurement, ...]:
    return read(path, fingerprint(**changes), at=MADE_AT).measurements


def test_each_measurement_is_on_disk_when_append_returns(path: Path) -> None:
    with opened(path) as journal:
        seen = []
        for one in measurements():
            journal.append(one)
            seen.append(resumed(path))

    assert seen == [measurements()[:count] for count in range(1, 7)]


def test_a_line_is_one_json_document(path: Path) -> None:
    written(path)
    header, *rest = (json.loads(line) for line in path.read_text().splitlines())

    assert header["entry"]["kind"] == "journal"
    assert header["entry"]["fingerprint"]["memory_limit_bytes"] == 2**30
    assert [line["entry"]["batch"] for line in rest] == [8, 256, 544, 544, 512, 360]


def test_a_missing_journal_resumes_no_measurements(path: Path) -> None:
    assert resumed(path) == ()
    assert read(path, fingerprint(), at=MADE_AT) == Past()


def test_a_line_truncated_at_any_byte_loses_only_that_line(path: Path) -> None:
    written(path, *measurements()[:2])
    data = path.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    for length in range(last, len(data)):
        path.write_bytes(data[:length])
        assert resumed(path) == measurements()[:1]


def test_a_truncated_header_invalidates_the_journal(path: Path) -> None:
    written(path)
    data = path.read_bytes()
    for length in range(0, data.index(b"\n") + 1, 7):
        path.write_bytes(data[:length])
        past = read(path, fingerprint(), at=MADE_AT)
        assert past.measurements == ()
        assert past.ignored


def test_a_modified_line_is_ignored_and_the_other_lines_are_kept(path: Path) -> None:
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"batch":256', b'"batch":999')
    lines[4] = b"not JSON\n"
    lines.insert(5, b'[1]\n{"check":7,"entry":{}}\n{"check":"","entry":[]}\n')
    path.write_bytes(b"".join(lines))

    assert [one.sequence for one in resumed(path)] == [1, 3, 5, 6]


def test_a_line_of_another_journal_is_rejected(path: Path) -> None:
    written(path, *measurements()[:1])
    other = path.with_name("other.jsonl")
    written(other, *measurements())
    path.write_bytes(path.read_bytes() + other.read_bytes().split(b"\n", 2)[2])

    assert resumed(path) == measurements()[:1]


def test_a_repeated_sequence_number_is_ignored(path: Path) -> None:
    written(path, measurement(sequence=1, batch=8), measurement(sequence=1, batch=9), measurement(sequence=2, batch=10))

    assert [(one.sequence, one.batch) for one in resumed(path)] == [(1, 8), (2, 10)]


@pytest.mark.parametrize("part", ["cpu", "torch", "task", "options"])
def test_the_journal_of_another_machine_task_or_options_is_ignored(path: Path, part: str) -> None:
    written(path)

    past = read(path, fingerprint(**{part: "another"}), at=MADE_AT)

    assert past.measurements == ()
    assert f"other-{part}" in past.ignored


@pytest.mark.parametrize(("days", "why"), [(8, "expired"), (-1, "future-dated")])
def test_a_journal_expires_like_a_calibration(path: Path, days: int, why: str) -> None:
    written(path)

    past = read(path, fingerprint(), at=MADE_AT + timedelta(days=days))

    assert past.measurements == ()
    assert why in past.ignored


def test_resumed_measurements_keep_their_age(path: Path) -> None:
    written(path, *measurements()[:1])
    with opened(path, hours=100) as journal:
        journal.append(measurements()[1])
    with opened(path, hours=160) as journal:
        taken_over = journal.past

    assert taken_over == Past(measurements=measurements()[:2], started_at=MADE_AT)
    assert read(path, fingerprint(), at=MADE_AT + timedelta(hours=169)).measurements == ()


def test_a_resumed_calibration_continues_in_the_same_journal(path: Path) -> None:
    written(path, *measurements()[:3])
    path.write_bytes(path.read_bytes() + b'{"check":"torn')
    with opened(path, hours=1) as journal:
        taken_over = journal.past.measurements
        for one in measurements()[3:]:
            journal.append(one)

    assert taken_over == measurements()[:3]
    assert resumed(path) == measurements()


def test_a_race_of_policies_is_resumed_from_the_journal(path: Path) -> None:
    time = StepTime(micro_batch=8, threads=2, step_s=0.5, fetch_s=0.1, fetch_cpu_s=0.1, update_s=0.01, steps=3)
    speeds = Speeds(device="cpu", allocator="retain", times=(time,), rounds=2, left="")
    race = RacedPolicies(device="cpu", allocator="retain", speeds=(speeds,))
    with opened(path) as journal:
        journal.append(race)
        journal.append(measurements()[0])
    with opened(path, hours=1) as journal:
        assert journal.past.races == (race,)
    with opened(path, hours=2) as journal:  # taken over twice
        taken_over = journal.past

    assert taken_over == Past(measurements=measurements()[:1], races=(race,), started_at=MADE_AT)


def test_a_restart_discards_the_journal(path: Path) -> None:
    written(path)
    with opened(path, restart=True) as journal:
        assert journal.past == Past()

    assert resumed(path) == ()


def test_a_signed_journal_is_read_only_with_the_same_key(path: Path) -> None:
    written(path, key=KEY)
    signed = read(path, fingerprint(), at=MADE_AT, key=KEY).measurements
    by_another = read(path, fingerprint(), at=MADE_AT, key=Key(b"another key of ours", configured=False, source="")).measurements
    by_nobody = resumed(path)
    written(path.with_name("unsigned.jsonl"))
    unsigned = read(path.with_name("unsigned.jsonl"), fingerprint(), at=MADE_AT, key=KEY).measurements

    assert signed == measurements()
    assert by_another == by_nobody == unsigned == ()


def test_a_complete_calibration_removes_its_journal(path: Path) -> None:
    journal = opened(path)
    journal.remove()
    journal.remove()

    assert not path.exists()
    with pytest.raises(ValueError, match="closed"):
        journal.append(measurement())


def test_a_full_disk_loses_only_the_journal_line_that_failed(path: Path) -> None:
    with opened(path) as journal:
        journal.append(measurements()[0])
        with files_of_at_most(path.stat().st_size + 100), pytest.raises(NotSaved):
            journal.append(measurements()[1])
        journal.append(measurements()[2])

    assert [one.sequence for one in resumed(path)] == [1, 3]


def test_a_journal_that_cannot_be_created_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotSaved, match="could not be saved"):
        opened(tmp_path / "file" / "calibration.journal.jsonl")


def test_a_journal_behind_a_symbolic_link_is_ignored_and_replaced(path: Path, tmp_path: Path) -> None:
    written(tmp_path / "elsewhere.jsonl")
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere.jsonl")
    ignored = read(path, fingerprint(), at=MADE_AT)
    written(path, *measurements()[:1])

    assert ignored.measurements == ()
    assert "symbolic link" in ignored.ignored
    assert resumed(path) == measurements()[:1]
    assert resumed(tmp_path / "elsewhere.jsonl") == measurements()


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"format": True}, {"kind": "diary"}, {"started_at": "2026-07-01T12:00:00"}, {"options": None}]
)
def test_an_unreadable_header_invalidates_the_journal(path: Path, change: dict[str, object]) -> None:
    written(path)
    header, rest = path.read_bytes().split(b"\n", 1)
    entry = json.dumps(json.loads(header)["entry"] | change, sort_keys=True, separators=(",", ":")).encode()
    check = hashlib.sha256(b"\n" + entry).hexdigest()[:16].encode()
    path.write_bytes(b'{"check":"' + check + b'","entry":' + entry + b"}\n" + rest)

    past = read(path, fingerprint(), at=MADE_AT)

    assert past == Past(ignored="the header of the journal cannot be read")
