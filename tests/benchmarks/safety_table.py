"""Does a calibration survive under real limits, and is its answer right? Every example in every limit, checked by the oracle.

Each cell: `batchcal calibrate CONFIG --json` in a memory cgroup, the kernel's count of OOM kills, then plain trainings at the
answer (all must survive) and at answer / 0.93 (one of five must not fit). What is measured is kept as it comes; a second run
with the same --journal goes on where the first one stopped.

    python -m tests.benchmarks.safety_table --limits 512MiB,1GiB --configs handwriting,patchtst
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Final

from batchcal.calibration.schema import Calibration
from batchcal.core.units import format_bytes, parse_size
from tests.benchmarks._limits import ROOT, Ended, python, run_limited
from tests.benchmarks._report import Journal, finish, say
from tests.benchmarks.oracle import Training, Trial, check_answer, runs_at, steps_at

LIMITS: Final = "512MiB,1GiB,2GiB,7.6GiB"
CONFIGS: Final = "handwriting,patchtst,textpair,multiimage"
CUT_SHORT: Final = ("dataset", "max-batch", "model")
"""Where one of these ended the search there is nothing larger to try, and answer / 0.93 has nothing to say."""
CAPACITY: Final = ("--allocator", "default", "--objective", "memory")
"""The question is the largest batch under the allocator that the plain trainings have."""
COLUMNS: Final = (
    "config", "limit", "exit", "oom_kills", "probes", "wall_s", "answer", "limited_by", "peak_of_limit",
    "survived", "runs", "beyond_exceeded", "oracle_oom_kills", "right",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Calibrated:
    ended: Ended
    calibration: Calibration | None


def calibrate(config: str, limit_bytes: int, options: list[str]) -> Calibrated:
    with tempfile.TemporaryDirectory(prefix="safety-") as folder:
        kept = Path(folder) / "calibration.json"
        home = {"HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config", "XDG_CACHE_HOME": f"{folder}/cache"}
        command = python("-m", "batchcal", "calibrate", config, "--json", "--force", "--output", str(kept), *CAPACITY, *options)
        ended = run_limited(command, limit_bytes=limit_bytes, environment=home)
        text = kept.read_text(encoding="utf-8") if kept.exists() else ""
    return Calibrated(ended, Calibration.model_validate_json(text) if text else None)


def cell(config: str, limit_bytes: int, done: Calibrated, steps: int, runs: int | None) -> dict[str, object]:
    """One row of the table."""
    path = f"configs/{config}.toml"
    row: dict[str, object] = {
        "config": config,
        "limit": format_bytes(limit_bytes),
        "limit_bytes": limit_bytes,
        "exit": done.ended.exit_code,
        "oom_kills": done.ended.oom_kills,
        "wall_s": round(done.ended.wall_s, 1),
        "group_peak_bytes": done.ended.group_peak_bytes,
        "right": False,
    }
    calibration = done.calibration
    finding = None if calibration is None else calibration.finding()
    budget = None if calibration is None else calibration.budget()
    if calibration is None or finding is None or budget is None:
        return row | {"stderr": done.ended.stderr[-2000:]}
    train = finding.train
    kills: list[int] = []

    def trial(batch: int, eval_batch: int | None) -> Trial:
        tried = Training(path, limit_bytes, steps=steps).trial(batch, eval_batch=eval_batch)
        kills.append(tried.oom_kills)
        return tried

    say(f"{config} in {row['limit']}: {train.batch}, budget {format_bytes(budget.budget_bytes)}, limited by {train.limited_by}")
    verdict = check_answer(
        trial,
        budget.budget_bytes,
        train.batch,
        runs=runs or runs_at(limit_bytes),
        eval_batch=finding.eval.batch if finding.eval is not None else None,
        ask_beyond=train.limited_by not in CUT_SHORT,
    )
    safe = done.ended.exit_code == 0 and done.ended.oom_kills == 0
    return row | {
        "probes": sum(one.mode == "train" for one in calibration.measurements),
        "eval_probes": sum(one.mode == "eval" for one in calibration.measurements),
        "answer": train.batch,
        "eval_answer": finding.eval.batch if finding.eval is not None else None,
        "limited_by": train.limited_by,
        "status": calibration.status,
        "budget_bytes": budget.budget_bytes,
        "measured_peak_bytes": train.peak_bytes,
        "peak_bytes": verdict.peak_bytes,
        "peak_of_limit": None if verdict.peak_bytes is None else round(verdict.peak_bytes / limit_bytes, 3),
        "survived": verdict.survived,
        "runs": verdict.of,
        "within_budget": verdict.within_budget,
        "beyond": verdict.beyond,
        "beyond_exceeded": verdict.beyond_exceeded,
        # Kills of plain trainings beyond the answer are what the oracle is for; they are no fault of the calibration.
        "oracle_oom_kills": sum(kills[: verdict.of]),
        "right": safe and verdict.right,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", default=LIMITS)
    parser.add_argument("--configs", default=CONFIGS, help="names in configs/, without .toml")
    parser.add_argument("--runs", type=int, help="plain trainings at each answer; default 20 up to 1 GiB, else 5")
    parser.add_argument("--steps", type=int, help="of each plain training; default 12 up to 2 GiB, else 6")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "safety_table.jsonl")
    parser.add_argument("--afresh", action="store_true", help="measure cells again that the journal has")
    parser.add_argument("options", nargs="*", help="for calibrate, behind `--`")
    arguments = parser.parse_args()
    journal = Journal(arguments.journal)
    asked = [
        (config, parse_size(text, name="limit"))
        for text in arguments.limits.split(",")
        for config in arguments.configs.split(",")
    ]
    rows: dict[tuple[str, int], dict[str, object]] = {}
    calibrated: dict[tuple[str, int], Calibrated] = {}
    # All calibrations first: they have a time limit and want a quiet machine; the oracle only asks for memory.
    for config, limit in asked:
        known = None if arguments.afresh else journal.find(config=config, limit_bytes=limit, options=arguments.options)
        if known is not None:
            rows[config, limit] = known
            continue
        say(f"calibrating {config} in {format_bytes(limit)}")
        calibrated[config, limit] = calibrate(f"configs/{config}.toml", limit, arguments.options)
    say("calibrated; now the oracle")
    for (config, limit), done in calibrated.items():
        row = cell(config, limit, done, arguments.steps or steps_at(limit), arguments.runs) | {"options": arguments.options}
        journal.add(row)
        rows[config, limit] = row
    summary = {
        "cells": len(rows),
        "right": sum(row["right"] is True for row in rows.values()),
        "kernel_oom_kills": sum(count for row in rows.values() if isinstance(count := row["oom_kills"], int)),
        "not_exit_0": sum(row["exit"] != 0 for row in rows.values()),
    }
    finish("safety_table", [rows[key] for key in asked], summary, columns=COLUMNS)


if __name__ == "__main__":
    main()
