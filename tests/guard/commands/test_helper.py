"""Real helper processes: they read lines and write messages; none stays behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from batchcal.core.errors import GuardError
from batchcal.guard.commands.helper import HelperProcess

pytestmark = pytest.mark.child

ECHO = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"heard": line.strip()}), flush=True)
print("gone", file=sys.stderr)
raise SystemExit(3)
"""
STUBBORN = """
import json, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(json.dumps({"child": child.pid}), flush=True)
time.sleep(600)
"""


def helper(folder: Path, code: str) -> HelperProcess:
    (folder / "helped.py").write_text(code, encoding="utf-8")
    return HelperProcess("helped", directory=str(folder), log=folder / "logs" / "helped.log")


def first_message(process: HelperProcess) -> dict[str, object]:
    while (messages := process.read()) is not None:
        if messages:
            return messages[0]
    raise AssertionError(process.log_tail())


def test_a_helper_reads_lines_and_writes_messages_until_its_input_ends(tmp_path: Path) -> None:
    process = helper(tmp_path, ECHO)
    process.send("go on")
    assert first_message(process) == {"heard": "go on"}
    process._stdin.close()
    assert process.read() is None
    assert process.close() == 3
    assert process.log_tail() == "gone"
    process.send("after its end")


def test_a_helper_that_does_not_end_is_killed_with_its_child_processes(tmp_path: Path) -> None:
    process = helper(tmp_path, STUBBORN)
    child = first_message(process)["child"]
    assert isinstance(child, int)
    started = psutil.Process(child)
    assert process.wait(0.1) == -9
    psutil.wait_procs([started], timeout=5)
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE


def test_a_helper_that_cannot_be_started_raises_guard_error(tmp_path: Path) -> None:
    with pytest.raises(GuardError) as error:
        HelperProcess("helped", directory=str(tmp_path / "nowhere"), log=tmp_path / "helped.log")
    assert "nowhere" in error.value.known
