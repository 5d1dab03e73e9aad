"""How well is the memory of a batch known before it runs, once a training has learned from its first ones?

A task is calibrated and trained under an allocator policy, as shipped, for some optimizer steps. Then every other step is one
from which nothing is learned, where every batch is predicted first and run with all free memory handed back before, so that the
peak is its own: that is the truth that predictions are held against, for each group of samples by itself. `spread` is how far the
truth itself goes, where all batches of a group are made of the same: half of the distance between its quartiles.

    python -m tests.benchmarks.online_prediction --policies tcmalloc,default
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from batchcal.calibration.schema import Calibration
from batchcal.core.clock import SystemClock
from batchcal.core.progress import Silent
from batchcal.guard.children.release import trim
from batchcal.machine.peak_meter import PeakMeter
from batchcal.plan.make import make_plan
from batchcal.runtime.accumulate import Group, groups
from batchcal.runtime.apply import apply, reexec_for
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import Passes, SampleShare, run_group
from batchcal.train.memory.control import MemoryControl
from batchcal.train.memory.predictor import predictor_of
from batchcal.train.options import TrainOptions
from batchcal.train.seed import seed_everything
from batchcal.train.training_setup import TrainingSetup, make_setup
from batchcal.workload.spec.load import load_task
from tests.benchmarks._limits import ROOT, python, run_limited
from tests.benchmarks._reference import reference_of
from tests.benchmarks._report import MIB, finish, say

TASKS: Final = {"handwriting": 256, "textpair": 256, "patchtst": 128, "multiimage": 96}
"""With the effective batch."""
LEAST: Final = 5
"""Batches of a group that are held against predictions, or nothing is said of it."""
SAME: Final = 0.002
"""Compositions that differ by less are the same."""
TIMEOUT_S: Final = 900.0


@dataclass
class Truth:
    """A guard that predicts and measures, and learns nothing."""

    control: MemoryControl
    meter: PeakMeter
    found: dict[str, list[tuple[float, int, int]]] = field(default_factory=lambda: defaultdict(list))
    """By group: predicted bytes, measured bytes, padded bytes of the batch."""

    def run(self, passes: Passes, micro_batch: MicroBatch) -> SampleShare:
        batch = self.control.composition(micro_batch)
        predicted = self.control.predictor.predict(batch)
        trim()
        self.meter.begin()
        share = passes.run(micro_batch)
        self.found[batch.group].append((predicted, self.meter.end(), batch.padded_bytes))
        return share

    def before_update(self) -> None:
        return None


def endless(setup: TrainingSetup) -> Iterator[Group]:
    while True:
        yield from groups(setup.loader)


def step(setup: TrainingSetup, ahead: Iterator[Group], guard: MemoryControl | Truth) -> None:
    group = next(ahead)
    setup.control.begin_group()
    run_group(setup.task, group.micro_batches, device=setup.device, scaler=setup.scaler, guard=guard)
    if setup.balancer is not None:
        setup.balancer.after_step()


def inside(config: Path, kept: Path, policy: str, learned: int, held_against: int) -> None:
    """The training; prints a line of JSON for every group."""
    calibration = Calibration.model_validate_json(kept.read_text(encoding="utf-8"))
    plan = make_plan(calibration, allocator=policy)
    reexec_for(plan)
    apply(plan)
    seed_everything(0)
    task = load_task(reference_of(str(config)), device=plan.device)
    asked = tomllib.loads(config.read_text(encoding="utf-8"))["train"]
    options = TrainOptions(epochs=1_000, batching=asked.get("batching", "plain"), loss_weights=asked.get("loss_weights", "task"))
    setup = make_setup(
        task,
        plan,
        options,
        checkpoint=None,
        resume=False,
        predictor=predictor_of(calibration, plan),
        progress=Silent(),
        clock=SystemClock(),
    )
    truth = Truth(setup.control, PeakMeter(torch.device(plan.device)))
    with setup.control.monitor:
        ahead = endless(setup)
        for _ in range(learned):
            step(setup, ahead, setup.control)
        stable = {group for group in setup.control.predictor.groups() if setup.control.predictor.stable(group)}
        for _ in range(held_against):
            step(setup, ahead, truth)
            step(setup, ahead, setup.control)
    for group, found in sorted(truth.found.items()):
        errors = sorted(abs(predicted / measured - 1) for predicted, measured, _ in found)
        sizes = [padded for _, _, padded in found]
        same = max(sizes) - min(sizes) <= SAME * max(sizes)
        quartiles = statistics.quantiles([measured for _, measured, _ in found], n=4) if len(found) > 1 else [1.0, 1.0, 1.0]
        row = {
            "group": group or "-",
            "batches": len(found),
            "learned": group in stable,
            "peak_mib": round(statistics.median(measured for _, measured, _ in found) / MIB),
            "error": round(statistics.median(errors), 4),
            "error_p90": round(errors[int(0.9 * (len(errors) - 1))], 4),
            "spread": round((quartiles[2] - quartiles[0]) / 2 / quartiles[1], 4) if same else None,
        }
        print(json.dumps(row), flush=True)


def measured(name: str, policy: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    config = ROOT / "configs" / f"{name}.toml"
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "calibration.json"
        home = {"HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config", "XDG_CACHE_HOME": f"{folder}/cache"}
        options = ("--allocator", policy, "--effective-batch", str(TASKS[name]), "--memory-limit", "2GiB", "--time-limit", "40s")
        command = python("-m", "batchcal", "calibrate", str(config), "--output", str(kept), *options)
        calibrated = run_limited(command, limit_bytes=None, regime="none", environment=home, timeout_s=TIMEOUT_S)
        if not kept.exists():
            raise SystemExit(calibrated.stderr[-2000:])
        numbers = ("--learn", str(arguments.learn), "--hold", str(arguments.hold))
        inner = python("-m", "tests.benchmarks.online_prediction", "--inside", str(config), "--kept", str(kept), *numbers)
        ended = run_limited(
            [*inner, "--policies", policy], limit_bytes=None, regime="none", environment=home, timeout_s=TIMEOUT_S
        )
        if ended.exit_code:
            raise SystemExit(ended.stderr[-2000:])
        return [
            {"task": name, "policy": policy, **json.loads(line)} for line in ended.stdout.splitlines() if line.startswith("{")
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="tcmalloc,default")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--learn", type=int, default=60, help="optimizer steps")
    parser.add_argument("--hold", type=int, default=20, help="optimizer steps")
    parser.add_argument("--inside", type=Path)
    parser.add_argument("--kept", type=Path)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        inside(arguments.inside, arguments.kept, arguments.policies, arguments.learn, arguments.hold)
        return
    rows: list[dict[str, object]] = []
    for policy in arguments.policies.split(","):
        for name in arguments.tasks.split(","):
            found = [row for row in measured(name, policy, arguments) if int(str(row["batches"])) >= LEAST]
            rows += found
            for row in found:
                say(str(row))
    worst = {
        policy: max((float(str(row["error"])) for row in rows if row["policy"] == policy), default=None)
        for policy in arguments.policies.split(",")
    }
    finish("online_prediction", rows, {f"worst median with {policy}": value for policy, value in worst.items()})


if __name__ == "__main__":
    main()
