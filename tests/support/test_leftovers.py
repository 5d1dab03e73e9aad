"""Each kind of leftover is noticed."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support.leftovers import TOKEN, look, settled


def test_leftover_files_and_links_are_detected(tmp_path: Path) -> None:
    temporary, project = tmp_path / "tmp", tmp_path / "project"
    temporary.mkdir()
    project.mkdir()
    before = look(directory=temporary, project=project)
    (temporary / "pymp-abc").mkdir()
    (temporary / "pymp-abc" / "listener-1").write_bytes(b"")
    (project / "result.json").write_text("{}")
    (project / "study.journal.lock").symlink_to("holder")
    left = look(directory=temporary, project=project).beyond(before)
    assert left.files == {"pymp-abc", "pymp-abc/listener-1"}
    assert left.links == {str(project / "study.journal.lock")}
    assert len(left.lines()) == sum(left.counts().values()) == 3


@pytest.mark.child
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm")
def test_a_leftover_semaphore_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    before = look()
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    left = look().beyond(before).semaphores
    assert left
    del semaphore
    assert not left & look().semaphores


@pytest.mark.child
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_leftover_process_is_detected_by_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    token = uuid.uuid4().hex
    monkeypatch.setenv(TOKEN, token)
    before = look(token=token)
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert len(look(token=token).beyond(before).processes) == 1
    process.kill()
    assert not settled(lambda: look(token=token), before).zombies or process.wait() is not None
