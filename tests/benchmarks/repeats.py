"""Does a calibration choose as well again, on a quiet machine and beside somebody else's bursts of work?

Calibrates the same task again and again, as often quietly as beside a process that takes one core for half of the time. All that
was chosen is then judged on the quiet machine, each in its turn, in interleaved rounds: a choice is as good as any where its
median is within 3 % of the best one's. The journal keeps what was measured: started again, it goes on.

    python -m tests.benchmarks.repeats --task handwriting --repeats 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from batchcal.calibration.schema import Calibration
from batchcal.calibration.upgrade import upgraded
from batchcal.core.clock import SystemClock
from batchcal.core.progress import Silent
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.children.child_probe import child_probe
from batchcal.measure.rehearsal.stage import Stage
from batchcal.plan.make import make_plan
from batchcal.plan.plan import Plan
from batchcal.workload.spec.target import reference_of
from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import Journal, finish, rounds, say
from tests.benchmarks.choice import calibrated, name_of, target_of, turn

REGIMES: Final = ("quiet", "bursts")
BURST_S: Final = 1.0
ROUNDS: Final = 15
TURN_S: Final = 2.0
"""A child that has just been started runs its first half second at anything from half of its speed on."""
AS_GOOD: Final = 1.03


def bursts() -> None:
    """One core, half of the time, until it is ended, or who started it is gone: killed, that cannot end anything."""
    parent = os.getppid()
    while os.getppid() == parent:
        until = time.monotonic() + BURST_S
        while time.monotonic() < until:
            pass
        time.sleep(BURST_S)


@contextlib.contextmanager
def beside(regime: str) -> Iterator[None]:
    if regime == "quiet":
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=bursts, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def judged(calibration: Calibration, task: str, plans: dict[str, Plan]) -> dict[str, float]:
    """Samples/s of each plan: medians of interleaved rounds."""
    reference = reference_of(target_of(task), directory=ROOT)
    budgets = {budget.device: budget for budget in calibration.budgets}
    meter = memory_meter()
    told: dict[str, list[float]] = {name: [] for name in plans}
    with closing(child_probe(reference, calibration.options, calibration.environment, budgets, meter, note=say)) as probe:
        stage = Stage(probe, SystemClock(), Silent(), until=float("inf"))
        probe.prepare(sorted({plan.allocator for plan in plans.values()}), 0)
        for name in rounds(list(plans), ROUNDS):
            told[name].append(turn(stage, plans[name], least_s=TURN_S) or 0.0)
    meter.close()
    return {name: statistics.median(rates) for name, rates in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="handwriting")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--effective-batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20, help="in each regime")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "repeats.jsonl")
    arguments = parser.parse_args()
    journal = Journal(arguments.journal)
    asked = ("--effective-batch", str(arguments.effective_batch))
    key = {"task": arguments.task, "memory": arguments.memory, "effective_batch": arguments.effective_batch}
    for number in range(arguments.repeats):
        for regime in REGIMES:
            if journal.find(**key, number=number, regime=regime) is not None:
                continue
            with beside(regime):
                calibration, wall_s = calibrated(arguments.task, arguments.memory, *asked)
            journal.add(
                {**key, "number": number, "regime": regime, "wall_s": round(wall_s, 1), "made": calibration.model_dump_json()}
            )
            say(f"{regime} {number}: {name_of(make_plan(calibration))} in {wall_s:.0f} s")
    rows = [row for row in journal.rows if key.items() <= row.items()]
    made = [Calibration.model_validate(upgraded(json.loads(str(row["made"])))) for row in rows]
    chosen = [make_plan(one) for one in made]
    rates = judged(made[0], arguments.task, {name_of(plan): plan for plan in chosen})
    best = max(rates.values())
    table = []
    for regime in REGIMES:
        names = [name_of(plan) for plan, row in zip(chosen, rows, strict=True) if row["regime"] == regime]
        good = sum(rates[name] * AS_GOOD >= best for name in names)
        worst = min(rates[name] for name in names) / best
        table.append(
            {
                "regime": regime,
                "calibrations": len(names),
                "as_good": good,
                "share": round(good / len(names), 3),
                "worst": round(worst, 3),
            }
        )
    for name, rate in sorted(rates.items(), key=lambda pair: -pair[1]):
        say(f"  {name}: {rate:.0f} samples/s, chosen {sum(name_of(plan) == name for plan in chosen)} times")
    finish("repeats", table, {str(row["regime"]): row["share"] for row in table})


if __name__ == "__main__":
    main()
