"""/dev/shm, also a real one of Docker's size."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchcal.core.units import MIB
from batchcal.detect.environment import Environment
from batchcal.detect.shared_memory import PATH, Space, read_shared_memory, space_of
from batchcal.machine.roots import THIS_MACHINE, Root


def test_the_size_and_free_bytes_of_shared_memory_are_reported(tmp_path: Path) -> None:
    notes: list[str] = []
    found = read_shared_memory(Root(tmp_path), lambda path: Space(size_bytes=64 * MIB, free_bytes=MIB), notes)
    assert found is not None
    assert (found.path, found.size_bytes, found.free_bytes, notes) == (PATH, 64 * MIB, MIB, [])


def test_missing_shared_memory_produces_a_note(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read_shared_memory(Root(tmp_path), space_of, notes) is None
    assert "No such file" in notes[0]


def test_a_system_without_statvfs_produces_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.statvfs")
    notes: list[str] = []
    assert read_shared_memory(THIS_MACHINE, space_of, notes) is None
    assert "statvfs" in notes[0]


DETECT = "from batchcal.detect.detect import detect; print(detect().model_dump_json())"


@pytest.mark.child
def test_a_real_shared_memory_of_64_mib_is_detected_with_advice() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    fill = "mount -t tmpfs -o size=64m tmpfs /dev/shm && head -c 1048576 /dev/zero > /dev/shm/held"
    command = f"{fill} && exec {sys.executable} -c '{DETECT}'"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("needs root for a mount namespace")
    assert done.returncode == 0, done.stderr
    found = Environment.model_validate_json(done.stdout)
    assert found.shared_memory is not None
    assert (found.shared_memory.size_bytes, found.shared_memory.free_bytes) == (64 * MIB, 63 * MIB)
    assert "shm-small" in {advice.code for advice in found.advice}
