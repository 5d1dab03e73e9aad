"""Wall time of the first calibration of a task against its floor, under memory limits, with the default options.

The floor is the least work that could give the answer (`tests.benchmarks.floor`), run under the same limit right after the
calibration. `--journal` keeps the cells that were run; the same command again runs the rest.

    python -m tests.benchmarks.wall_time --journal wall.jsonl
    python -m tests.benchmarks.wall_time --tasks u-net,gru --limits 1GiB,none
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Final

from batchcal.calibration.keys import find_trust
from batchcal.calibration.schema import Calibration
from batchcal.calibration.store import Loaded, load
from batchcal.core.units import parse_size
from batchcal.plan.make import plan_to_show
from tests.benchmarks._limits import python, run_limited
from tests.benchmarks._report import MIB, Journal, finish, say
from tests.zoo.registry import TASKS

EXAMPLES: Final = ("handwriting", "textpair", "multiimage")
"""The fourth example, patchtst, is in the zoo."""
NONE: Final = "none"
LEAST_S: Final = 15.0
"""A calibration may take this long, whatever its floor."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join((*EXAMPLES, *TASKS)))
    parser.add_argument("--limits", default=f"1GiB,2GiB,7.6GiB,{NONE}")
    parser.add_argument("--options", default="", help="further options of calibrate, separated by spaces")
    parser.add_argument("--journal", type=Path)
    arguments = parser.parse_args()
    journal, rows = Journal(arguments.journal), []
    for task, limit in itertools.product(arguments.tasks.split(","), arguments.limits.split(",")):
        row = journal.find(task=task, limit=limit)
        if row is None:
            row = {"task": task, "limit": limit, **cell(task, limit, arguments.options.split())}
            journal.add(row)
            say(json.dumps(row))
        rows.append(row)
    ratios = sorted(float(str(row["ratio"])) for row in rows if row["ratio"] is not None)
    summary = {
        "cells": len(rows),
        "median of wall / floor": statistics.median(ratios) if ratios else None,
        "95 % of cells within": ratios[int(0.95 * (len(ratios) - 1))] if ratios else None,
        "above max(8 x floor, 15 s)": sum(row["slow"] is True for row in rows),
        "complete": sum(row["status"] == "complete" for row in rows),
        "kernel kills": sum(int(str(row["kills"])) for row in rows),
    }
    columns = ["task", "limit", "exit", "status", "batch", "plan", "samples_per_s", "wall_s", "floor_s", "ratio", "kills"]
    finish("wall_time", rows, summary, columns=columns)


def cell(task: str, limit: str, options: list[str]) -> dict[str, object]:
    spec = f"configs/{task}.toml" if task in EXAMPLES else TASKS[task].spec
    limit_bytes = None if limit == NONE else parse_size(limit, name="limit")
    with tempfile.TemporaryDirectory(prefix="bc-") as folder:
        output = Path(folder) / "calibration.json"
        home = {"HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder}
        command = python("-m", "batchcal", "calibrate", spec, "--output", str(output), "--force", "--quiet", *options)
        done = run_limited(command, limit_bytes=limit_bytes, timeout_s=300.0, environment=home)
        stored = load(output, trust=find_trust({"HOME": folder})) if output.exists() else None
        calibration = stored.calibration if isinstance(stored, Loaded) else None
        row: dict[str, object] = {
            "exit": done.exit_code,
            "status": None if calibration is None else calibration.status,
            "wall_s": round(done.wall_s, 2),
            "kills": done.oom_kills,
            "peak_mib": done.group_peak_bytes // MIB,
            "error": done.stderr[-400:] if done.exit_code else "",
        }
        finding = None if calibration is None else calibration.finding()
        if calibration is None or finding is None:
            return row | {"batch": None, "floor_s": None, "ratio": None, "slow": None}
        plan, _ = plan_to_show(calibration)
        group = ",".join(map(str, plan.micro_batches))
        floor_command = python("-m", "tests.benchmarks.floor", spec, "--batch", str(finding.train.batch), "--group", group)
        floor = run_limited(floor_command, limit_bytes=limit_bytes, timeout_s=300.0, environment=home)
    ratio = done.wall_s / floor.wall_s if floor.survived else None
    return row | {
        "batch": finding.train.batch,
        "limited_by": finding.train.limited_by,
        "plan": f"{plan.accumulation_steps} x {plan.micro_batch}, {plan.allocator}, {plan.num_workers} workers",
        "samples_per_s": plan.predicted_samples_per_s,
        "floor_s": round(floor.wall_s, 2) if floor.survived else None,
        "ratio": None if ratio is None else round(ratio, 2),
        "slow": None if ratio is None else done.wall_s > max(8 * floor.wall_s, LEAST_S),
        "slices": slices(calibration),
    }


def slices(calibration: Calibration) -> dict[str, float]:
    """Where the time went, seconds."""
    return {one.part: round(one.wall_s, 1) for one in calibration.time_slices}


if __name__ == "__main__":
    main()
