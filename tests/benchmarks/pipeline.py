"""Is `calibrate --pipeline-only` quick, and does it choose right? Each cold run against a grid of the same DataLoaders.

The grid fetches longer and in more rounds, in a process of its own, and uses the best round of each DataLoader. Regret is by what
the chosen one is slower than the best of the grid, both by the grid's own rates.

    python -m tests.benchmarks.pipeline --tasks handwriting,textpair --repeats 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Final

from batchcal.calibration.records.pipeline import PipelineResult
from tests.benchmarks._limits import ROOT, python, run_limited
from tests.benchmarks._report import finish, rounds, say

TASKS: Final = "handwriting,patchtst,textpair,multiimage,waiting"
WAITING: Final = "tests.measure.pipeline.tasks:waiting"
"""Every sample waits for 2 ms, as on a slow disk: input-bound, and workers help however few cores there are."""
ROUNDS: Final = 8
FETCHES: Final = 24
REACH: Final = (5.0, 0.03)
"""Seconds of a cold run, regret."""


def target_of(task: str) -> str:
    return WAITING if task == "waiting" else f"configs/{task}.toml"


def grid(task: str, batch: int) -> None:
    """Prints samples per second of every candidate, as one JSON line."""
    import torch

    from batchcal.detect.detect import detect
    from batchcal.measure.pipeline.candidates import candidates
    from batchcal.measure.pipeline.fetch import SampleSource
    from batchcal.workload.spec.load import load_task
    from batchcal.workload.spec.target import reference_of

    torch.manual_seed(0)
    reference = reference_of(target_of(task), directory=ROOT)
    source = SampleSource.of(load_task(reference, device="cpu"), 0)
    chosen = {
        f"{one.num_workers}/{one.prefetch_factor}": one for one in candidates(detect().cpu.cores.value, stream=source.stream)
    }
    best: dict[str, float] = {}
    for name in rounds(list(chosen), ROUNDS):
        seconds = source.fetch(chosen[name], batch, FETCHES)
        rate = batch * len(seconds) / sum(seconds)
        best[name] = max(rate, best.get(name, 0.0))
    print(json.dumps(best))


def run(task: str) -> dict[str, object]:
    began = time.perf_counter()
    command = python("-m", "batchcal", "calibrate", target_of(task), "--pipeline-only", "--json")
    ended = run_limited(command, limit_bytes=None, regime="none")
    wall_s = time.perf_counter() - began
    result = PipelineResult.model_validate_json(ended.stdout)
    config = result.winner.config
    name = f"{config.num_workers}/{config.prefetch_factor}"
    say(f"{task}: {name} in {wall_s:.2f} s; now the grid")
    asked = python("-m", "tests.benchmarks.pipeline", "--grid", task, "--batch", str(result.batch))
    rates: dict[str, float] = json.loads(run_limited(asked, limit_bytes=None, regime="none").stdout.splitlines()[-1])
    best = max(rates, key=rates.__getitem__)
    return {
        "task": task,
        "wall_s": round(wall_s, 2),
        "candidates": len(result.timings),
        "batch": result.batch,
        "rounds": result.winner.rounds,
        "settled": result.settled,
        "chosen": name,
        "best": best,
        "samples_per_s": round(rates[name]),
        "best_samples_per_s": round(rates[best]),
        "regret": round(1 - rates[name] / rates[best], 4),
    }


def summary_of(rows: list[dict[str, object]]) -> dict[str, object]:
    walls = [float(row["wall_s"]) for row in rows if isinstance(row["wall_s"], int | float)]
    regrets = [float(row["regret"]) for row in rows if isinstance(row["regret"], int | float)]
    return {
        "wall_s_median": round(statistics.median(walls), 2),
        "wall_s_most": max(walls),
        "regret_mean": round(statistics.mean(regrets), 4),
        "regret_most": max(regrets),
        "within_reach": sum(wall <= REACH[0] and regret <= REACH[1] for wall, regret in zip(walls, regrets, strict=True)),
        "runs": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=TASKS, help="names in configs/, without .toml, and `waiting`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--grid", metavar="TASK", help="inside: the grid of one task")
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    if arguments.grid:
        grid(arguments.grid, arguments.batch)
        return
    rows = [run(task) for _ in range(arguments.repeats) for task in arguments.tasks.split(",")]
    finish("pipeline", rows, summary_of(rows))


if __name__ == "__main__":
    main()
