"""How much a race saves by throwing candidates out, and how often it throws out the best: replayed over recorded turns.

Records turns of allocator policies at several micro-batches, in interleaved rounds (once; the journal keeps them). Then replays
the race over them, drawing turns at random, and compares with a race that runs every candidate in every round.

    python -m tests.benchmarks.race_replay --config handwriting --replays 1000
"""

from __future__ import annotations

import argparse
import random
import statistics
from contextlib import closing
from pathlib import Path
from typing import Final

from batchcal.detect.detect import detect
from batchcal.machine.allocator import available
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.budget import budgets_of
from batchcal.measure.children.child_probe import child_probe
from batchcal.measure.children.probe import TimingRequest
from batchcal.measure.options import options
from batchcal.measure.race.race import MOST_ROUNDS, TIE, Race
from batchcal.workload.spec.target import reference_of
from tests.benchmarks._limits import ROOT
from tests.benchmarks._report import Journal, finish, rounds, say

SIZES: Final = (16, 64, 256)
RECORDED: Final = 16
"""Rounds."""
SAMPLES: Final = 256


def record(config: str, journal: Journal, wanted: int) -> None:
    """Adds turns to the journal until each candidate has `wanted`."""
    environment = detect()
    asked = options(environment.memory.limit.value, device="cpu")
    meter = memory_meter()
    reference = reference_of(f"configs/{config}.toml", directory=ROOT)
    budgets = budgets_of(environment, asked)
    policies = [policy.name for policy in available()]
    with closing(child_probe(reference, asked, environment, budgets, meter, note=say)) as probe:
        probe.prepare(policies, 0)
        names = [f"{policy}/{size}" for policy in policies for size in SIZES]
        for name in rounds(names, wanted):
            policy, _, size = name.partition("/")
            report = probe.time_sizes(
                TimingRequest(
                    device="cpu",
                    allocator=policy,
                    micro_batches=(int(size),),
                    samples=SAMPLES,
                    allowed_bytes=budgets["cpu"].budget_bytes,
                    limit_s=30.0,
                )
            )
            if report.times:
                journal.add({"config": config, "name": name, "seconds": 1 / report.times[0].samples_per_s(1 << 20)})
    meter.close()


def recorded(config: str, journal: Journal) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in journal.rows:
        if row["config"] == config and isinstance(row["name"], str) and isinstance(row["seconds"], float):
            found.setdefault(row["name"], []).append(row["seconds"])
    return found


def replay(times: dict[str, list[float]], seed: int) -> tuple[float, float, bool]:
    """Share of the turns that were saved, by what the winner is slower than the best, whether the best was thrown out."""
    names = sorted(times)
    dice = random.Random(seed)
    race, turns = Race(len(names)), 0
    while not race.over:
        told = {place: dice.choice(times[names[place]]) for place in race.order()}
        turns += len(told)
        race.record(told)
    truth = {name: statistics.median(times[name]) for name in names}
    best = min(truth, key=truth.__getitem__)
    leader = race.leader
    won = names[leader] if leader is not None else names[0]
    out = {names[runner.place] for runner in race.runners if runner.left is not None}
    alike = {name for name in names if truth[name] <= truth[best] * TIE}
    return 1 - turns / (len(names) * MOST_ROUNDS), truth[won] / truth[best] - 1, alike <= out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="handwriting")
    parser.add_argument("--replays", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=RECORDED)
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "race_replay.jsonl")
    arguments = parser.parse_args()
    journal = Journal(arguments.journal)
    if len(next(iter(recorded(arguments.config, journal).values()), [])) < arguments.rounds:
        record(arguments.config, journal, arguments.rounds)
    times = recorded(arguments.config, journal)
    told = [replay(times, seed) for seed in range(arguments.replays)]
    rows = [
        {
            "candidate": name,
            "turns": len(seconds),
            "samples_per_s": round(1 / statistics.median(seconds)),
            "spread": round(statistics.stdev(seconds) / statistics.mean(seconds), 3),
        }
        for name, seconds in sorted(times.items(), key=lambda pair: statistics.median(pair[1]))
    ]
    finish(
        "race_replay",
        rows,
        {
            "replays": len(told),
            "saved_mean": round(statistics.mean(saved for saved, _, _ in told), 3),
            "regret_mean": round(statistics.mean(regret for _, regret, _ in told), 4),
            "within_3_percent": round(sum(regret <= TIE - 1 for _, regret, _ in told) / len(told), 4),
            "all_that_are_as_fast_as_the_best_thrown_out": round(sum(wrong for _, _, wrong in told) / len(told), 4),
        },
    )


if __name__ == "__main__":
    main()
