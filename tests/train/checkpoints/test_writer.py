"""A save that fails is retried, costs no training, and leaves the one before."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from batchcal.core.errors import NotSaved
from batchcal.core.progress import Recorded
from batchcal.train.checkpoints import writer
from batchcal.train.checkpoints.checkpoint import Standing
from batchcal.train.checkpoints.writer import RETRY_S, CheckpointWriter


class Hand:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def now(self) -> datetime:
        return datetime.now(UTC)


class Disk:
    """Fails as often as it is set to."""

    def __init__(self, failures: int) -> None:
        self.failures, self.attempts = failures, 0
        self.content: Standing | None = None

    def write(self, path: Path, standing: Standing) -> None:
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise NotSaved("not written", known="No space left on device")
        self.content = standing


def standing(group: int) -> Standing:
    return Standing(seed=0, effective_batch=1, train_samples=9, epoch=0, group=group)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LAST_RETRY_S", 0.0)


def a_writer(disk: Disk, clock: Hand, heard: Recorded | None = None, path: Path | None = Path("run.pt")) -> CheckpointWriter:
    return CheckpointWriter(path, disk.write, every_s=600.0, clock=clock, progress=heard or Recorded())


def test_a_failed_save_is_retried_once_soon_and_then_at_the_next_interval() -> None:
    clock, disk = Hand(), Disk(2)
    writer = a_writer(disk, clock)
    attempts = []
    for now in (1.0, 600.0, 601.0, 600.0 + RETRY_S, 600.0 + 2 * RETRY_S, 1200.0 + RETRY_S, 1900.0):
        clock.now_s = now
        writer.save_when_due(standing(round(now)))
        attempts.append(disk.attempts)
    assert attempts == [0, 1, 1, 2, 2, 3, 4]
    assert writer.problem is None, "the save that succeeded cleared it"
    assert disk.content == standing(1900)


def test_the_last_save_is_retried_immediately() -> None:
    disk, heard = Disk(1), Recorded()
    writer = a_writer(disk, Hand(), heard)
    writer.save(standing(1), last=True)
    assert (disk.attempts, writer.problem) == (2, None)
    assert [name for name, _ in heard.events] == ["notice", "checkpoint_saved"]
    assert "run.pt" in writer.outcome()


def test_a_failed_save_reports_the_error_and_the_content_of_the_file() -> None:
    disk = Disk(0)
    writer = a_writer(disk, Hand())
    assert writer.earlier() == "there is no checkpoint of this run"
    writer.save(standing(3))
    disk.failures = 2
    writer.save(standing(5), last=True)
    assert "No space left" in writer.outcome()
    assert "run.pt contains the training up to epoch 0, step 3" in writer.outcome()
    assert writer.saved == disk.content == standing(3)


def test_a_saved_state_is_not_saved_again() -> None:
    disk = Disk(0)
    writer = a_writer(disk, Hand())
    now = standing(2)
    writer.save(now)
    writer.save(now, last=True)
    assert disk.attempts == 1


def test_no_checkpoint_is_written_without_a_path() -> None:
    disk = Disk(0)
    writer = a_writer(disk, Hand(), path=None)
    writer.save(standing(1), last=True)
    assert disk.attempts == 0
    assert "off" in writer.outcome()
