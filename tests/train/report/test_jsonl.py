"""The log of a run on a disk that is full, after a kill, and beside earlier ones."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcal.core.clock import ManualClock
from batchcal.core.errors import UsageError
from batchcal.train.report import jsonl
from batchcal.train.report.jsonl import RETRY_S, JsonlLog, check_log, header_of
from batchcal.train.report.read import read_run
from tests.support.runs import STARTED_AT, a_start


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(STARTED_AT)


def test_the_header_is_the_first_line_and_times_are_relative_to_it(tmp_path: Path, clock: ManualClock) -> None:
    with JsonlLog(tmp_path / "a" / "run.jsonl", clock=clock) as log:
        log.event("notice", {"text": "before anything began"})
        clock.move(100.0)
        log.event("training_started", a_start())
        clock.move(2.5)
        log.event("step", {"step": 1})
    header, early, step = lines_of(tmp_path / "a" / "run.jsonl")
    assert (header["event"], header["kind"], header["format"], header["at"]) == ("training_started", "run", 1, 0.0)
    assert header["time"] == "2026-07-01T12:01:40+00:00"
    assert early["text"] == "before anything began"
    assert (step["event"], step["at"]) == ("step", 2.5)


def test_each_line_is_in_the_file_before_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = JsonlLog(path)
    log.event("training_started", a_start())
    for step in range(1, 4):
        log.event("step", {"step": step})
        assert lines_of(path)[-1]["step"] == step
    log.close()
    log.event("step", {"step": 4})
    assert lines_of(path)[-1]["step"] == 3


def test_a_training_that_never_started_leaves_no_log(tmp_path: Path) -> None:
    with JsonlLog(tmp_path / "run.jsonl") as log:
        log.event("notice", {"text": "no data"})
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_log_path_is_rejected_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        JsonlLog(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        JsonlLog(tmp_path / "file" / "run.jsonl")


def test_a_resumed_run_appends_to_the_same_log(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for start in (a_start(), a_start(epoch=1)):
        with JsonlLog(path) as log:
            log.event("training_started", start)
            log.event("step", {"step": 1})
    assert [line["event"] for line in lines_of(path)] == ["training_started", "step", "training_started", "step"]


def test_an_incomplete_line_of_a_killed_process_stays_a_separate_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JsonlLog(path) as log:
        log.event("training_started", a_start())
    path.write_bytes(path.read_bytes() + b'{"event":"st')
    with JsonlLog(path) as log:
        log.event("training_started", a_start(resumed_at_sample=512))
    assert [line[:12] for line in path.read_text().splitlines()] == ['{"event":"tr', '{"event":"st', '{"event":"tr']


def test_a_new_run_renames_the_log_of_an_earlier_run(tmp_path: Path) -> None:
    path, told = tmp_path / "run.jsonl", list[str]()
    for seed in range(3):
        with JsonlLog(path, report=told.append) as log:
            log.event("training_started", a_start(seed=seed))
    seeds = {name.name: lines_of(name)[0]["seed"] for name in tmp_path.iterdir()}
    assert seeds == {"run.jsonl": 2, "run.1.jsonl": 0, "run.2.jsonl": 1}
    assert told == [f"the log of an earlier run was renamed to {tmp_path}/run.{number}.jsonl" for number in (1, 2)]


def test_a_file_that_is_not_a_log_is_neither_written_nor_moved(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(UsageError, match="is an existing file that is not the log of a run"):
        JsonlLog(path)
    assert [one.name for one in tmp_path.iterdir()] == ["run.jsonl"]
    assert path.read_text() == "my notes\n"


def test_a_log_can_be_written_to_a_device() -> None:
    with JsonlLog(Path("/dev/null")) as log:
        log.event("training_started", a_start())


class Disk:
    """Takes `room` more bytes."""

    def __init__(self) -> None:
        self.room: int | None = None

    def write_all(self, descriptor: int, data: bytes) -> None:
        if self.room is None:
            os.write(descriptor, data)
            return
        os.write(descriptor, data[: self.room])
        if len(data) > self.room:
            self.room = 0
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(jsonl, "write_all", made.write_all)
    yield made


def test_a_full_disk_is_reported_once_and_missing_events_are_counted(tmp_path: Path, clock: ManualClock, disk: Disk) -> None:
    path, told = tmp_path / "run.jsonl", list[str]()
    log = JsonlLog(path, report=told.append, clock=clock)
    log.event("training_started", a_start())
    log.event("step", {"step": 1})
    disk.room = 7
    for step in range(2, 6):
        log.event("step", {"step": step})
        clock.move(RETRY_S * 0.6)
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert "training continues" in told[0]
    assert [line["event"] for line in lines_of(path)] == ["training_started", "step"], "half a line is taken back"
    disk.room = None
    clock.move(RETRY_S)
    log.event("step", {"step": 6})
    *_, gap, last = lines_of(path)
    assert gap["text"] == "4 events are missing here: No space left on device"
    assert last["step"] == 6
    assert len(told) == 1


def test_a_header_that_did_not_fit_is_written_when_space_is_available(tmp_path: Path, clock: ManualClock, disk: Disk) -> None:
    path = tmp_path / "run.jsonl"
    disk.room = 10
    log = JsonlLog(path, clock=clock)
    log.event("training_started", a_start())
    log.event("step", {"step": 1})
    disk.room = None
    clock.move(RETRY_S * 2)
    log.event("step", {"step": 2})
    assert [line["event"] for line in lines_of(path)] == ["training_started", "notice", "step"]
    assert header_of(path) is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_raises_no_error() -> None:
    told: list[str] = []
    with JsonlLog(Path("/dev/full"), report=told.append) as log:
        log.event("training_started", a_start())
        for step in range(3):
            log.event("step", {"step": step})
    assert len(told) == 1


WRITER = """
import sys
from pathlib import Path
from batchcal.train.report.jsonl import JsonlLog
log = JsonlLog(Path(sys.argv[1]))
log.event("training_started", {"epochs": 1})
for step in range(10**9):
    log.event("step", {"epoch": 0, "step": step + 1, "global_step": step + 1, "loss": 0.25})
    if step == 500:
        print("ready", flush=True)
"""


@pytest.mark.child
def test_a_killed_process_loses_no_logged_events(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGKILL)
    run = read_run(path)
    assert len(run.steps) >= 501
    assert list(run.steps.column("step")) == [float(step) for step in range(1, len(run.steps) + 1)]
    assert run.status == "not ended"
    assert set(run.remarks) <= {"the last line is incomplete"}


def test_a_log_can_be_a_pipe_or_a_link_to_a_pipe_but_not_a_folder(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    check_log(pipe)
    check_log(link)
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is not a regular file"):
        check_log(folder)


def test_an_earlier_log_behind_a_link_is_renamed_and_the_link_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.touch()
    link.symlink_to(real)
    for _ in range(2):
        with JsonlLog(link) as log:
            log.event("training_started", a_start())
    assert link.is_symlink()
    assert header_of(link) is not None
    assert (tmp_path / "real.1.jsonl").exists()
