"""A calibration whose file, journal or lock is not to be had, or is another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.core.errors import NotSaved
from batchcal.core.lock import Lock
from tests.support.probes import Harness, ScriptedProbe


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written any more, as root neither."""

    def refuse(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchcal.calibration.store.write_atomically", refuse)
    monkeypatch.setattr("batchcal.calibration.journal.write_atomically", refuse)


@pytest.mark.usefixtures("full_disk")
def test_a_calibration_that_cannot_be_saved_is_returned_with_the_reason(harness: Harness) -> None:
    result = harness.calibrate(ScriptedProbe())
    assert result.path is None
    assert isinstance(result.not_saved, NotSaved)
    assert result.not_saved.exit_code == 7
    assert "disk is full" in result.not_saved.known
    assert result.calibration.status == "complete"
    assert any("no journal could be written" in notice for notice in result.notices)


def test_a_journal_write_error_does_not_fail_the_calibration(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchcal.calibration.journal.write_all", refuse)
    result = harness.calibrate(ScriptedProbe())
    assert result.calibration.status == "complete"
    assert any("the journal could not be written: the disk is full" in notice for notice in result.notices)


def test_a_calibration_saved_by_another_process_is_used_after_the_lock(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas on one volume: the second waits for the first and takes what it made."""
    made = harness.calibrate(ScriptedProbe()).calibration
    data = harness.path.read_bytes()
    harness.path.unlink()
    acquire = Lock.acquire

    def finished_by_another(self: Lock, **asked: object) -> object:
        harness.path.write_bytes(data)
        wait_s, done = asked["wait_s"], asked["done"]
        assert isinstance(wait_s, float)
        assert callable(done)
        return acquire(self, wait_s=wait_s, done=done)

    monkeypatch.setattr(Lock, "acquire", finished_by_another)
    probe = ScriptedProbe()
    result = harness.calibrate(probe)
    assert result.fresh
    assert result.calibration == made
    assert probe.requests == []


def test_a_calibration_without_file_locks_completes_with_a_notice(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(self: object, **asked: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    result = harness.calibrate(ScriptedProbe())
    assert result.calibration.status == "complete"
    assert any("no lock" in notice for notice in result.notices)
