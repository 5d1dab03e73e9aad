"""How well memory is predicted: a model fitted to probes at up to a quarter of the cap, against the measured peak at sizes at
least four times beyond, over all tasks, two optimizers and the allocator policies that are here.

The error is |predicted / measured - 1|. Each size is measured several times, which also gives the policy's own run-to-run
spread: no prediction can be better than that.

    python -m tests.benchmarks.prediction --memory 2GiB --allocators default,retain,tcmalloc
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel
from batchcal.core.units import parse_size
from batchcal.workload.spec.reference import TaskReference
from tests.benchmarks._limits import ROOT, python, run_limited
from tests.benchmarks._report import MIB, Journal, finish, say

LEARNED_AT: Final = (1 / 24, 1 / 16, 1 / 12, 1 / 10, 1 / 8, 1 / 7, 1 / 6)
"""Of the cap as it is guessed before anything was measured. The guess may be half too high, so the last is a quarter at most."""
BEYOND: Final = (4.0, 4.75, 5.5)
"""What is predicted, in multiples of the largest size that was learned from. What does not fit cannot be measured: left out."""
REACH: Final = {"tcmalloc": (0.015, 0.05)}
"""(median, 95th percentile) where the policy repeats itself; elsewhere its own spread is the measure."""


def run_cell(arguments: argparse.Namespace) -> None:
    """One task, optimizer and policy, within the group that we are in. Prints one JSON line."""
    from batchcal.guard.outcome import Fits
    from batchcal.measure.search.fit import fit
    from tests.benchmarks._probes import Bench, bench

    def peaks(at: Bench, batch: int, repeats: int) -> list[int]:
        found: list[int] = []
        for _ in range(repeats):
            outcome = at.measure(batch).outcome
            if isinstance(outcome, Fits):
                found.append(outcome.peak.demand_bytes)
            say(f"  {arguments.config} {arguments.optimizer} batch {batch}: {outcome.kind} {found[-1:]}")
        return found

    reference = TaskReference(
        spec="tests.benchmarks._jobs:with_optimizer",
        directory=str(ROOT),
        arguments={"config": arguments.config, "optimizer": arguments.optimizer},
    )
    rows: list[dict[str, object]] = []
    with bench(reference, allocator=arguments.allocator) as at:
        prior = at.on_paper()
        cap = prior.largest_within(at.budget_bytes, ceiling=at.examination.facts.train_samples or 1 << 20)
        learned = [(size, peak) for part in LEARNED_AT if (size := int(cap * part)) for peak in peaks(at, size, 1)]
        if not learned:
            raise SystemExit(f"nothing of {arguments.config} was learned below {cap}")
        model: MemoryModel = fit(
            prior.shape,
            learned,
            base_bytes=at.examination.base_bytes,
            source=at.examination.shape_source,
            prior_ratio=prior.ratio,
            spread=0.0,
        )
        anchor = max(size for size, _ in learned)
        for size in sorted({math.ceil(anchor * times) for times in BEYOND}):
            measured = peaks(at, size, arguments.repeats)
            if not measured:
                continue
            middle = statistics.median(measured)
            rows.append(
                {
                    "config": Path(arguments.config).stem,
                    "optimizer": arguments.optimizer,
                    "allocator": arguments.allocator,
                    "shape": at.examination.shape_source,
                    "learned_to": anchor,
                    "base_mib": round(at.examination.base_bytes / MIB, 1),
                    "learned": [_point(model, size, peak) for size, peak in learned],
                    "heap_mib": round(model.heap(size) / MIB, 1),
                    "mapped_mib": round(model.mapped(size) / MIB, 1),
                    "batch": size,
                    "predicted_mib": round(model.predict(size) / MIB, 1),
                    "measured_mib": round(middle / MIB, 1),
                    "errors": [round(abs(model.predict(size) / one - 1), 4) for one in measured],
                    "spread": round((max(measured) - min(measured)) / middle, 4),
                }
            )
    print(json.dumps({"rows": rows}))


def _point(model: MemoryModel, batch: int, peak_bytes: int) -> dict[str, float]:
    """A measured size beside what it takes on paper: from these a fit can be judged again without measuring again."""
    heap, mapped = model.heap(batch) / MIB, model.mapped(batch) / MIB
    return {
        "batch": batch,
        "heap_mib": round(heap, 1),
        "mapped_mib": round(mapped, 1),
        "measured_mib": round(peak_bytes / MIB, 1),
    }


def summary_of(rows: list[dict[str, object]]) -> dict[str, object]:
    """Per policy: median and 95th percentile of the error, the policy's own spread, and whether it is met."""
    told: dict[str, object] = {}
    for policy in dict.fromkeys(str(row["allocator"]) for row in rows):
        mine = [row for row in rows if row["allocator"] == policy]
        errors = [error for row in mine if isinstance(row["errors"], list) for error in row["errors"]]
        spreads = [spread for row in mine if isinstance(spread := row["spread"], float)]
        middle, high = statistics.median(errors), percentile(errors, 0.95)
        told[policy] = {
            "points": len(errors),
            "median_error": round(middle, 4),
            "p95_error": round(high, 4),
            "median_spread": round(statistics.median(spreads), 4) if spreads else None,
            "max_spread": max(spreads, default=None),
            "met": None if policy not in REACH else middle <= REACH[policy][0] and high <= REACH[policy][1],
        }
    return told


def percentile(values: list[float], part: float) -> float:
    """The smallest value that at least `part` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(part * len(ordered)) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="handwriting,patchtst,textpair,multiimage")
    parser.add_argument("--optimizers", default="sgd,adamw")
    parser.add_argument("--allocators", default="default")
    parser.add_argument("--memory", default="2GiB", help="limit of the cgroup")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="of one cell")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "prediction.jsonl")
    parser.add_argument("--afresh", action="store_true", help="measure again what the journal has")
    cell_only = parser.add_argument_group("one cell, within the group that it is started in")
    cell_only.add_argument("--cell", action="store_true")
    cell_only.add_argument("--config", default="configs/handwriting.toml")
    cell_only.add_argument("--optimizer", default="as-is")
    cell_only.add_argument("--allocator", default="default")
    arguments = parser.parse_args()
    if arguments.cell:
        run_cell(arguments)
        return
    journal = Journal(arguments.journal)
    rows: list[dict[str, object]] = []
    for allocator in arguments.allocators.split(","):
        for config in arguments.configs.split(","):
            for optimizer in arguments.optimizers.split(","):
                cell = {"config": f"configs/{config}.toml", "optimizer": optimizer, "allocator": allocator}
                key = {**cell, "memory": arguments.memory, "repeats": arguments.repeats}
                known = None if arguments.afresh else journal.find(**key)
                if known is None:
                    options = [part for name, value in cell.items() for part in (f"--{name}", value)]
                    ended = run_limited(
                        python("-m", "tests.benchmarks.prediction", "--cell", *options, "--repeats", str(arguments.repeats)),
                        limit_bytes=parse_size(arguments.memory),
                        timeout_s=arguments.timeout_s,
                    )
                    if not ended.survived:
                        say(f"{cell}: exit {ended.exit_code}, {ended.oom_kills} kernel kills\n{ended.stderr[-2000:]}")
                        continue
                    known = {**key, **json.loads(ended.stdout.strip().splitlines()[-1])}
                    journal.add(known)
                found = known["rows"]
                rows += [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    finish("prediction", rows, summary_of(rows))


if __name__ == "__main__":
    main()
