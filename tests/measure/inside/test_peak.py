"""Memory of DataLoader workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchcal.core.units import MIB
from batchcal.machine import tree_meter
from batchcal.measure.inside.peak import WorkersPeak


def test_shared_memory_counts_as_memory_of_workers(tmp_path: Path) -> None:
    workers = WorkersPeak()
    waiting = Path("/dev/shm/batchcal-test-waiting")
    try:
        waiting.write_bytes(b"x" * 24 * MIB)
        workers.update()
    finally:
        waiting.unlink(missing_ok=True)
    assert 20 * MIB <= workers.read() <= 40 * MIB


def test_missing_shared_memory_counts_as_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_meter, "SHARED_MEMORY", str(tmp_path / "none"))
    assert WorkersPeak().read() == 0
