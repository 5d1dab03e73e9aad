"""A calibration killed at any moment loses nothing that it had measured, and the next one goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.child]


def killed(*asked: str) -> dict[str, dict[str, int]]:
    # Not under coverage: a calibration slowed down tenfold would be killed before it measures.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kill_calibration", *asked],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, dict[str, int]] = json.loads(done.stdout)
    return told


def test_many_kills_with_the_fake_probe_lose_no_measurements() -> None:
    counts = killed("--fake", "50", "--real", "0")["fake"]
    assert counts["kills"] == 50
    assert counts["calibrations"] > 0, "some of them ended; how many is a matter of speed"
    assert [counts[name] for name in ("bad_reads", "old_reads", "left_running")] == [0, 0, 0]
    assert counts["ended_whole"] == 1


def test_kills_during_probes_lose_no_measurements_and_leave_no_process() -> None:
    counts = killed("--fake", "0", "--real", "2")["real"]
    assert counts["kills"] == 2
    assert [counts[name] for name in ("bad_reads", "old_reads", "left_running")] == [0, 0, 0]
    assert counts["ended_whole"] == 1
