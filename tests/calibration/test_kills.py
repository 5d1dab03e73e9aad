"""A writer killed at any moment leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.child
def test_killing_the_writer_200_times_never_corrupts_or_loses_a_calibration() -> None:
    # Not under coverage: a writer slowed down tenfold would be killed before it writes.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kill_writer", "--kills", "200"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, float] = json.loads(done.stdout)
    assert counts["kills"] == 200
    assert counts["saved"] > 20
    assert [counts[name] for name in ("bad_reads", "old_reads", "bad_journals", "old_journals")] == [0, 0, 0, 0]
    assert counts["leftovers_after_an_hour"] == 0
