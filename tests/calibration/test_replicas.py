"""Replicas on one volume: one calibrates and the others read it; with no lock to be had each result is valid."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from batchcal.calibration.keys import find_trust
from batchcal.calibration.store import Loaded, load_fresh
from tests.support.calibrations import MADE_AT, fingerprint
from tests.support.faults import faulty_environment

pytestmark = pytest.mark.child

ROOT = Path(__file__).parents[2]
REPLICA = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
from batchcal.calibration.keys import find_or_make_trust
from batchcal.calibration.store import Loaded, load_fresh, lock_path, make_folder, save
from batchcal.core.lock import Lock
from tests.support.calibrations import MADE_AT, a_calibration, fingerprint

path, trust = Path(sys.argv[1]), find_or_make_trust(os.environ)

def find():
    return load_fresh(path, fingerprint(), at=MADE_AT + timedelta(hours=1), trust=trust)

make_folder(path)
sys.stdin.read()  # all at once
with Lock(lock_path(path)) as lock:
    result = lock.acquire(wait_s=30, done=lambda: isinstance(find(), Loaded))
    if result.state != "done":
        time.sleep(0.3)
        save(a_calibration(notes=(f"made by {os.getpid()}",)), path, key=trust.key)
found = find()
print(json.dumps({
    "state": result.state,
    "key": trust.key and trust.key.key_id,
    "notes": found.calibration.notes if isinstance(found, Loaded) else str(found),
    "notices": found.notices if isinstance(found, Loaded) else (),
}))
"""


def answers(path: Path, count: int, environment: dict[str, str] | None = None) -> list[dict[str, object]]:
    replicas = [
        subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for _ in range(count)
    ]
    for replica in replicas:
        assert replica.stdin is not None
        replica.stdin.close()
        replica.stdin = None
    told = []
    for replica in replicas:
        out, errors = replica.communicate(timeout=120)
        assert replica.returncode == 0, errors
        told.append(json.loads(out))
    return told


def test_one_of_eight_concurrent_replicas_calibrates_and_seven_read_it(tmp_path: Path) -> None:
    told = answers(tmp_path / ".batchcal" / "calibration.json", 8)

    assert sorted(str(one["state"]) for one in told) == ["done"] * 7 + ["held"]
    assert len({str(one["notes"]) for one in told}) == 1
    assert len({str(one["key"]) for one in told}) == 1
    assert all(one["notices"] == [] for one in told)


def test_without_file_locks_each_replica_calibrates_and_the_result_is_valid(tmp_path: Path) -> None:
    path = tmp_path / ".batchcal" / "calibration.json"

    told = answers(path, 3, faulty_environment(tmp_path, {"flock": "ENOLCK"}))

    assert [one["state"] for one in told] == ["unavailable"] * 3
    left = load_fresh(path, fingerprint(), at=MADE_AT + timedelta(hours=1), trust=find_trust({}))
    assert isinstance(left, Loaded)
    assert left.calibration.notes[0].startswith("made by ")
