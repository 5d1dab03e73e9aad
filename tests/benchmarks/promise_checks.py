"""False alarms of the promise checks, and the time that they take, over the shipped examples and the zoo.

Each task is examined in fenced children, as a calibration does it, and the result is compared with what the registry of the zoo
states. A false alarm: `violated`, although the task keeps its promise. A miss: not `violated`, although it does not.
`--journal` keeps the tasks that were examined, one JSON object a line; run the same command again for the rest.

    python -m tests.benchmarks.promise_checks --journal promises.jsonl
    python -m tests.benchmarks.promise_checks --tasks gru,residual --rounds 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Final

from batchcal.core.units import GIB
from tests.benchmarks._report import Journal, finish, say
from tests.support.children import probing
from tests.zoo.registry import TASKS, ZooEntry

EXAMPLES: Final = {
    name: ZooEntry(f"batchcal.workload.examples.{name}:task") for name in ("handwriting", "patchtst", "textpair", "multiimage")
}
ALL: Final = EXAMPLES | {name: entry for name, entry in TASKS.items() if name not in EXAMPLES}
SHAPE_LIMIT_S: Final = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(ALL), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="examinations of each task, each in new processes")
    parser.add_argument("--journal", type=Path)
    arguments = parser.parse_args()
    names = arguments.tasks.split(",")
    if unknown := [name for name in names if name not in ALL]:
        parser.error(f"unknown tasks: {', '.join(unknown)}; choose from {', '.join(ALL)}")
    journal, rows = Journal(arguments.journal), []
    for number in range(arguments.rounds):
        for name in names:
            row = journal.find(task=name, round=number)
            if row is None:
                row = {"task": name, "round": number, **examined(ALL[name])}
                journal.add(row)
                say(json.dumps(row))
            rows.append(row)
    seconds = [float(str(row["check_s"])) for row in rows if row["check_s"] is not None]
    summary = {
        "examinations": len(rows),
        "false alarms": sum(row["false_alarm"] is True for row in rows),
        "misses": sum(row["miss"] is True for row in rows),
        "not checked": sum("not-checked" in (row["mean"], row["statistics"]) for row in rows),
        "check, median s": statistics.median(seconds) if seconds else None,
        "check, longest s": max(seconds, default=None),
    }
    columns = ["task", "round", "mean", "mismatch", "statistics", "false_alarm", "miss", "check_s", "examination_s"]
    finish("promise_checks", rows, summary, columns=columns)


def examined(entry: ZooEntry) -> dict[str, object]:
    began = time.monotonic()
    with probing(entry.spec) as probe:
        examination = probe.examine("cpu", "default", 2 * GIB, SHAPE_LIMIT_S)
    checks = {check.promise: check for check in examination.promises}
    mean, layers = checks.get("mean-over-weight"), checks.get("batch-statistics")
    kept = ((mean, entry.mean_over_weight), (layers, not entry.batch_statistics))
    return {
        "mean": mean.result if mean else "absent",
        "mismatch": mean.mismatch if mean else None,
        "cause": mean.cause if mean else "",
        "statistics": layers.result if layers else "absent",
        "false_alarm": any(check is not None and check.result == "violated" and promised for check, promised in kept),
        "miss": any((check is None or check.result != "violated") and not promised for check, promised in kept),
        "check_s": mean.wall_s if mean else None,
        "examination_s": round(time.monotonic() - began, 2),
    }


if __name__ == "__main__":
    main()
