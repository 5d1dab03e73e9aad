"""Is what a calibration chooses the fastest there is? Each task's plan against a grid of settings around it.

Each task is calibrated cold; then up to 40 settings (allocator x micro-batch x threads with workers) are screened with a turn
each, and the plan runs against the best of them in interleaved rounds. A turn is a child of its own that trains groups of the
same effective batch; ratios are of the same round, and their median has a bootstrapped interval.

    python -m tests.benchmarks.choice --tasks handwriting,overhead
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from batchcal.calibration.schema import Calibration
from batchcal.core.clock import SystemClock
from batchcal.core.progress import Silent
from batchcal.guard.outcome import Fits
from batchcal.machine.allocator import available
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.children.child_probe import child_probe
from batchcal.measure.children.probe import RehearsalRequest
from batchcal.measure.rehearsal.stage import Stage, first_of
from batchcal.plan.division.split import split
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from batchcal.workload.spec.target import reference_of
from tests.benchmarks._limits import ROOT, python, run_limited
from tests.benchmarks._report import Journal, finish, rounds, say

TASKS: Final = "handwriting,patchtst,textpair,multiimage,input_bound,overhead"
OWN: Final = ("input_bound", "overhead")
MOST_CELLS: Final = 40
FINALISTS: Final = 3
"""Besides the plan."""
ROUNDS: Final = 6
TURN_S: Final = 1.0


def target_of(task: str) -> str:
    return f"tests.benchmarks._choice_tasks:{task}" if task in OWN else f"configs/{task}.toml"


def calibrated(task: str, memory: str, *options: str) -> tuple[Calibration, float]:
    """The calibration, and its seconds."""
    with tempfile.TemporaryDirectory(prefix="choice-") as folder:
        kept = Path(folder) / "calibration.json"
        home = {"HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config", "XDG_CACHE_HOME": f"{folder}/cache"}
        command = python(
            "-m", "batchcal", "calibrate", target_of(task), "--force", "--memory-limit", memory, "--output", str(kept), *options
        )
        began = time.perf_counter()
        ended = run_limited(command, limit_bytes=None, regime="none", environment=home)
        wall_s = time.perf_counter() - began
        if not kept.exists():
            raise SystemExit(f"{task}: {ended.stderr[-2000:]}")
        return Calibration.model_validate_json(kept.read_text(encoding="utf-8")), wall_s


def cells(calibration: Calibration, chosen: Plan) -> list[Plan]:
    """The settings to hold `chosen` against, all for the same effective batch."""
    effective = sum(chosen.micro_batches)
    sizes = sorted({max(1, min(effective, round(chosen.micro_batch * factor))) for factor in (0.25, 0.5, 1, 2, 4)} | {effective})
    most = calibration.environment.optimal_threads
    loaders = ((most, 0), (1, 0), (most, 1), (1, 1), (1, most)) if most > 1 else ((1, 0), (1, 1))
    found = []
    for policy in available():
        for size in sizes:
            parts = split(effective, size)
            for threads, workers in loaders:
                found.append(
                    chosen.model_copy(
                        update={
                            "allocator": policy.name,
                            "micro_batches": parts,
                            "micro_batch": parts[0],
                            "accumulation_steps": len(parts),
                            "intra_op_threads": threads,
                            "num_workers": workers,
                            "prefetch_factor": 2 if workers else None,
                            "persistent_workers": workers > 0,
                        }
                    )
                )
    drawn = random.Random(0).sample(found, len(found))
    return sorted(drawn[:MOST_CELLS], key=lambda plan: plan.allocator)


def name_of(plan: Plan) -> str:
    return f"{plan.allocator}/{plan.micro_batch}/{plan.intra_op_threads}t/{plan.num_workers}w"


def turn(stage: Stage, plan: Plan, *, least_s: float = TURN_S) -> float | None:
    """Samples per second of one turn of so many seconds; None: it does not run here."""
    report = stage.probe.observe(
        RehearsalRequest(
            plan=plan,
            micro_batches=first_of(plan, least_s, least=1),
            allowed_bytes=plan.budget_bytes * 2,
            budget_bytes=plan.budget_bytes * 2,
            least_s=least_s,
            limit_s=30.0,
        )
    )
    return report.outcome.samples_per_s if isinstance(report.outcome, Fits) else None


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 of 100 resampled medians."""
    dice = random.Random(0)
    medians = sorted(statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(1000))
    return medians[25], medians[974]


def held_against(task: str, calibration: Calibration, wall_s: float) -> dict[str, object]:
    """One row: the plan against the best of the grid."""
    reference = reference_of(target_of(task), directory=ROOT)
    chosen = make_plan(calibration)
    budgets = {budget.device: budget for budget in calibration.budgets}
    meter = memory_meter()
    with closing(child_probe(reference, calibration.options, calibration.environment, budgets, meter, note=say)) as probe:
        stage = Stage(probe, SystemClock(), Silent(), until=float("inf"))
        grid = {name_of(plan): plan for plan in cells(calibration, chosen)}
        probe.prepare(sorted({plan.allocator for plan in grid.values()} | {chosen.allocator}), 0)
        began = time.perf_counter()
        rates = {name: rate for name, plan in grid.items() if (rate := turn(stage, plan)) is not None}
        screened_s = time.perf_counter() - began
        best = sorted(rates, key=lambda name: -rates[name])[:FINALISTS]
        say(f"{task}: {name_of(chosen)} against {', '.join(f'{name} {rates[name]:.0f}' for name in best)}")
        runners = {**{name: grid[name] for name in best}, "chosen": chosen}
        told: dict[str, list[float]] = {name: [] for name in runners}
        for name in rounds(list(runners), ROUNDS):
            rate = turn(stage, runners[name])
            told[name].append(rate or 0.0)
    meter.close()
    winner = max(best, key=lambda name: statistics.median(told[name]))
    ratios = [mine / theirs for mine, theirs in zip(told["chosen"], told[winner], strict=True)]
    low, high = interval(ratios)
    grid_s = screened_s * ROUNDS  # had every cell been run as often as the finalists
    return {
        "task": task,
        "status": calibration.status,
        "chosen": name_of(chosen),
        "best": winner,
        "samples_per_s": round(statistics.median(told["chosen"])),
        "best_samples_per_s": round(statistics.median(told[winner])),
        "ratio": round(statistics.median(ratios), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "cells": len(grid),
        "failed": len(grid) - len(rates),
        "calibrated_s": round(wall_s, 1),
        "grid_s": round(grid_s),
        "cost": round(wall_s / grid_s, 3),
        "conservation": conservation(calibration),
        "wait_share": calibration.rehearsals[-1].wait_share if calibration.rehearsals else None,
    }


def conservation(calibration: Calibration) -> float | None:
    """Achieved over what conservation of work allows, both from the race of threads and workers."""
    finding = calibration.finding()
    finals = None if finding is None else calibration.finals_of(finding)
    if finals is None or finals.winner.samples_per_s is None:
        return None
    return round(finals.winner.samples_per_s / finals.limit_samples_per_s, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--memory", default="2GiB", help="the allowance that each task is calibrated for")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "choice.jsonl")
    arguments = parser.parse_args()
    journal, rows = Journal(arguments.journal), []
    for task in arguments.tasks.split(","):
        calibration, wall_s = calibrated(task, arguments.memory)
        row = held_against(task, calibration, wall_s)
        journal.add(row)
        say(f"  {row['chosen']} is {row['ratio']} of {row['best']} ({row['low']}-{row['high']})")
        rows.append(row)
    ratios = [float(row["ratio"]) for row in rows if isinstance(row["ratio"], int | float)]
    costs = [float(row["cost"]) for row in rows if isinstance(row["cost"], int | float)]
    finish(
        "choice",
        rows,
        {
            "ratio_mean": round(statistics.mean(ratios), 3),
            "ratio_worst": min(ratios),
            "cost_mean": round(statistics.mean(costs), 3),
        },
    )


if __name__ == "__main__":
    main()
