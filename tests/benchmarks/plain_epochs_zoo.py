"""Plain epochs at the answer: in a memory group, calibrate a task of the zoo, then train an epoch without batchcal.

Each cell is a task, a limit and a number of DataLoader workers. The calibration measures the largest batch under glibc's
defaults, because the plain epoch runs under them. A cell passes if the kernel killed no process, neither while batchcal measured
nor in the epoch. `--journal` keeps the cells that were run, one JSON object a line; run the same command again for the rest.

    python -m tests.benchmarks.plain_epochs_zoo --journal cells.jsonl
    python -m tests.benchmarks.plain_epochs_zoo --tasks gru,cached-on-read --limits 1GiB --workers 0,2 --time-limit 20s
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Final

from batchcal.core.units import parse_duration, parse_size
from tests.benchmarks._limits import Ended, python, run_limited
from tests.benchmarks._report import MIB, Journal, finish, say
from tests.zoo.registry import DATA, TASKS

ORDINARY: Final = ("u-net", "residual", "gru", "contrastive", "wide-mlp")
KEYS: Final = ("task", "limit", "workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join((*ORDINARY, *DATA)), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--limits", default="1GiB,2GiB")
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--time-limit", default="60s", help="of each calibration")
    parser.add_argument("--epoch-limit", type=float, default=600.0, help="seconds after which an epoch is ended")
    parser.add_argument("--journal", type=Path)
    arguments = parser.parse_args()
    names = arguments.tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        parser.error(f"unknown tasks: {', '.join(unknown)}; choose from {', '.join(TASKS)}")
    journal, rows = Journal(arguments.journal), []
    for task, limit, workers in itertools.product(names, arguments.limits.split(","), map(int, arguments.workers.split(","))):
        row = journal.find(task=task, limit=limit, workers=workers)
        if row is None:
            row = {"task": task, "limit": limit, "workers": workers}
            row |= cell(task, limit, workers, time_limit=arguments.time_limit, epoch_limit_s=arguments.epoch_limit)
            journal.add(row)
            say(json.dumps(row))
        rows.append(row)
    kills = sum(int(str(row[part])) for row in rows for part in ("calibration_kills", "epoch_kills"))
    summary = {
        "cells": len(rows),
        "kernel kills": kills,
        "epochs complete": sum(row["epoch"] == "complete" for row in rows),
        "without an answer": sum(row["batch"] is None for row in rows),
        "calibrations beyond 1.25 x their limit + 3 s": sum(row["in_time"] is False for row in rows),
    }
    columns = [*KEYS, "calibrate", "batch", "limited_by", "epoch", "calibration_kills", "epoch_kills", "epoch_mib", "epoch_s"]
    finish("plain_epochs_zoo", rows, summary, columns=columns)


def cell(task: str, limit: str, workers: int, *, time_limit: str, epoch_limit_s: float) -> dict[str, object]:
    spec, limit_bytes = TASKS[task].spec, parse_size(limit, name="limit")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bc-") as folder:
        output = Path(folder) / "calibration.json"
        options = ["--workers", str(workers), "--allocator", "default", "--objective", "memory", "--time-limit", time_limit]
        command = python("-m", "batchcal", "calibrate", spec, *options, "--output", str(output), "--force", "--quiet")
        environment = {"HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder}
        calibrated = run_limited(command, limit_bytes=limit_bytes, timeout_s=epoch_limit_s, environment=environment)
        answer = answer_in(output)
    allowed_s = 1.25 * parse_duration(time_limit) + 3
    row: dict[str, object] = {
        "calibrate": calibrated.exit_code,
        "calibrate_s": round(calibrated.wall_s, 1),
        "in_time": calibrated.wall_s <= allowed_s,
        "calibration_kills": calibrated.oom_kills,
        "error": calibrated.stderr[-500:] if calibrated.exit_code else "",
        **answer,
    }
    if answer["batch"] is None:
        return row | {"epoch": "no answer", "epoch_kills": 0}
    epoch = ["--batch", str(answer["batch"]), "--samples", "1", "--workers", str(workers)]
    trained = run_limited(
        python("-m", "tests.benchmarks.plain_epochs", spec, *epoch), limit_bytes=limit_bytes, timeout_s=epoch_limit_s
    )
    return row | {
        "epoch": how_it_ended(trained),
        "epoch_kills": trained.oom_kills,
        "epoch_mib": trained.group_peak_bytes // MIB,
        "epoch_s": round(trained.wall_s, 1),
        "epoch_error": "" if trained.survived else trained.stderr[-500:],
        "cell_s": round(time.monotonic() - began, 1),
    }


def answer_in(output: Path) -> dict[str, object]:
    """The largest verified training batch of a calibration, and what limits it."""
    findings = json.loads(output.read_text(encoding="utf-8"))["findings"] if output.exists() else []
    if not findings:
        return {"batch": None, "limited_by": None}
    return {"batch": findings[0]["train"]["batch"], "limited_by": findings[0]["train"]["limited_by"]}


def how_it_ended(epoch: Ended) -> str:
    if epoch.oom_kills:
        return "killed"
    if epoch.timed_out:
        return "timed out"
    return "complete" if epoch.exit_code == 0 else f"exit {epoch.exit_code}"


if __name__ == "__main__":
    main()
