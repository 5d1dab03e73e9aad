"""Kills, signals to process groups, full disks and failures, over calibrations and trainings with workers.

What stays behind, which checkpoints are lost, which causes are wrong? All three must be 0.
`python -m tests.benchmarks.kills_everywhere` runs 1,000 cheap cases and 150 real ones and prints one JSON line. Each case is a
JSON object in `build/kills_everywhere.jsonl`, from which a run that was stopped continues. It mounts small disks, as root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from batchcal.detect.detect import detect
from tests.benchmarks._kill_cases import Case
from tests.benchmarks._kill_fakes import FAKES, run_fake, undisturbed_digest
from tests.benchmarks._kill_reals import REALS, Project, run_real
from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import Journal, say

SEED: Final = 20


def cases(fake: int, real: int) -> list[Case]:
    """Every event of every work in turn."""
    kinds = {"fake": [(work, event) for work, events in FAKES.items() for event in events]}
    kinds["real"] = [(work, event) for work, events in REALS.items() for event in events]
    found = [Case("fake", *kinds["fake"][number % len(kinds["fake"])], number) for number in range(fake)]
    return [*found, *(Case("real", *kinds["real"][number % len(kinds["real"])], number) for number in range(real))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", type=int, default=1000)
    parser.add_argument("--real", type=int, default=150)
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "kills_everywhere.jsonl")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    # A shell starts what runs in the background with SIGINT ignored, and every child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    journal, rows = Journal(asked.journal), []
    environment, digest, project = detect(), "", None
    for case in cases(asked.fake, asked.real):
        key = {"tier": case.tier, "work": case.work, "event": case.event, "number": case.number}
        row = journal.find(**key)
        if row is None:
            drawn = random.Random(SEED * 100_000 + case.number)
            if case.tier == "fake":
                digest = digest or undisturbed_digest()
                verdict = run_fake(case, environment, drawn, digest)
            else:
                project = project or Project()
                verdict = run_real(case, project, drawn)
            row = verdict.row(case)
            journal.add(row)
            if bad(row):
                say(json.dumps(row))
        rows.append(row)
    if project is not None:
        project.remove()
    summary = {tier: summary_of([row for row in rows if row["tier"] == tier]) for tier in ("fake", "real")}
    print(json.dumps({"benchmark": "kills_everywhere", **summary}))
    return int(any(bad(row) for row in rows))


def bad(row: dict[str, object]) -> bool:
    return bool(row["left"] or row["lost"] or row["wrong"])


def summary_of(rows: list[dict[str, object]]) -> dict[str, object]:
    return {
        "cases": len(rows),
        "ended_before": sum(bool(row["ended"]) for row in rows),
        **{name: sum(bool(row[name]) for row in rows) for name in ("left", "lost", "wrong")},
        "events": dict(Counter(f"{row['work']} {row['event']}" for row in rows)),
    }


if __name__ == "__main__":
    sys.exit(main())
