"""A soak of probes over tasks, limits and thread counts: what the kernel killed, what could not be told, what was left behind.

Each cell runs probes of one task in a real memory cgroup, at batch sizes of which about a third do not fit; the search's
prediction, which would not start those, is left out, so that the fence has work. Leftovers are counted one second later.

    python -m tests.benchmarks.soak --probes 1000
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

from batchcal.core.units import parse_size
from tests.benchmarks._limits import ROOT, python, run_limited
from tests.benchmarks._reference import reference_of
from tests.benchmarks._report import Journal, finish, say
from tests.support.leftovers import TOKEN, look, settled

UNCLASSIFIED: Final = frozenset({"infrastructure"})
"""Outcomes that say that we could not tell, or that our own machinery failed."""
TOO_LARGE: Final = 2.0
"""The largest size asked needs about this much of the budget."""


def run_cell(arguments: argparse.Namespace) -> None:
    """One task, one thread count, within the group that we are in. Prints one JSON line."""
    from tests.benchmarks._probes import bench

    dice = random.Random(arguments.seed)
    token = uuid.uuid4().hex
    os.environ[TOKEN] = token
    outcomes: collections.Counter[str] = collections.Counter()
    odd: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        directory = Path(folder)
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = folder
        before = look(token=token, directory=directory)
        began = time.monotonic()
        reference = reference_of(arguments.config)
        with bench(reference, threads=arguments.threads, workers=arguments.workers, allocator=arguments.allocator) as at:
            ceiling = max(2, at.on_paper().largest_within(TOO_LARGE * at.budget_bytes, ceiling=1 << 20))
            for _ in range(arguments.probes):
                # Log-uniform over the top six doublings: half of them near or over the budget.
                batch = max(1, round(ceiling * 2 ** -(dice.random() * 6)))
                report = at.measure(batch, mode="eval" if dice.random() < 0.15 else "train")
                kind = report.outcome.kind
                outcomes[kind] += 1
                say(f"  {arguments.config} batch {batch}: {kind} in {report.wall_s:.2f} s")
                if kind not in {"fits", "out-of-memory"}:
                    odd.append(f"{batch}: {report.outcome.model_dump_json()[:400]}")
        seconds = time.monotonic() - began
        left = settled(lambda: look(token=token, directory=directory), before, seconds=1.0)
    print(json.dumps({"outcomes": outcomes, "odd": odd, "left": left.lines(), "counts": left.counts(), "seconds": seconds}))


@dataclasses.dataclass(frozen=True)
class Cell:
    config: str
    limit: str
    threads: int
    workers: int
    allocator: str

    def run(self, probes: int, seed: int, timeout_s: float) -> dict[str, object]:
        options = ["--config", self.config, "--threads", str(self.threads), "--workers", str(self.workers)]
        options += ["--allocator", self.allocator, "--probes", str(probes), "--seed", str(seed)]
        with tempfile.TemporaryDirectory(prefix="soak-home-") as home:
            ended = run_limited(
                python("-m", "tests.benchmarks.soak", "--cell", *options),
                limit_bytes=parse_size(self.limit),
                timeout_s=timeout_s,
                environment={"HOME": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home},
            )
        sys.stderr.write("".join(line + "\n" for line in ended.stderr.splitlines()[-3:]))
        row: dict[str, object] = {**dataclasses.asdict(self), "oom_kills": ended.oom_kills, "exit": ended.exit_code}
        lines = ended.stdout.strip().splitlines()
        try:
            told = json.loads(lines[-1]) if lines else {}
        except ValueError:
            told = {}
        return row | (told if told else {"broken": ended.stderr[-2000:]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=1000, help="in all")
    parser.add_argument("--configs", default="handwriting,patchtst,textpair,multiimage")
    parser.add_argument("--limits", default="512MiB,768MiB,1GiB,2GiB")
    parser.add_argument("--thread-counts", default="1,2")
    parser.add_argument("--worker-counts", default="0", help="DataLoader workers, such as 0,2")
    parser.add_argument("--allocators", default="default", help="policies, such as default,retain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="of one cell")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "soak.jsonl")
    parser.add_argument("--afresh", action="store_true", help="run cells again that the journal has")
    cell_only = parser.add_argument_group("one cell, within the group that it is started in")
    cell_only.add_argument("--cell", action="store_true")
    cell_only.add_argument("--config", default="handwriting")
    cell_only.add_argument("--threads", type=int, default=1)
    cell_only.add_argument("--workers", type=int, default=0)
    cell_only.add_argument("--allocator", default="default")
    arguments = parser.parse_args()
    if arguments.cell:
        run_cell(arguments)
        return

    journal = Journal(arguments.journal)
    cells = [
        Cell(f"configs/{config}.toml", limit, int(threads), int(workers), allocator)
        for limit, config, threads, workers, allocator in itertools.product(
            arguments.limits.split(","),
            arguments.configs.split(","),
            arguments.thread_counts.split(","),
            arguments.worker_counts.split(","),
            arguments.allocators.split(","),
        )
    ]
    each = math.ceil(arguments.probes / len(cells))
    rows: list[dict[str, object]] = []
    for number, one in enumerate(cells):
        key = {**dataclasses.asdict(one), "probes": each, "seed": arguments.seed + number}
        known = None if arguments.afresh else journal.find(**key)
        row = known or one.run(each, arguments.seed + number, arguments.timeout_s) | key
        if known is None:
            journal.add(row)
        rows.append(row)
        say(f"{number + 1}/{len(cells)} {one}: {row.get('outcomes')}, {row['oom_kills']} kernel kills, left: {row.get('left')}")
    finish("soak", [_shown(row) for row in rows], summary_of(rows))


def summary_of(rows: list[dict[str, object]]) -> dict[str, object]:
    """What the soak is for: every number but the first two should be 0."""
    outcomes: collections.Counter[str] = collections.Counter()
    left: collections.Counter[str] = collections.Counter()
    for row in rows:
        outcomes.update(_counts(row.get("outcomes")))
        left.update(_counts(row.get("counts")))
    return {
        "probes": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        "kernel_oom_kills": sum(kills for row in rows if isinstance(kills := row["oom_kills"], int)),
        "unclassified": sum(outcomes[kind] for kind in UNCLASSIFIED),
        "broken_cells": sum("broken" in row for row in rows),
        **{f"left_{kind}": left[kind] for kind in ("processes", "zombies", "descriptors", "shared_memory", "files")},
    }


def _counts(value: object) -> dict[str, int]:
    return {str(name): count for name, count in value.items() if isinstance(count, int)} if isinstance(value, dict) else {}


def _shown(row: dict[str, object]) -> dict[str, object]:
    outcomes = _counts(row.get("outcomes"))
    other = sum(count for kind, count in outcomes.items() if kind not in {"fits", "out-of-memory"})
    odd = row.get("odd")
    return {
        "config": Path(str(row["config"])).stem,
        **{name: row[name] for name in ("limit", "threads", "workers", "allocator", "oom_kills")},
        "fits": outcomes.get("fits", 0),
        "too_big": outcomes.get("out-of-memory", 0),
        "other": other,
        "left": sum(_counts(row.get("counts")).values()),
        "seconds": row.get("seconds"),
        "odd": "; ".join(str(one)[:100] for one in odd) if isinstance(odd, list) else str(row.get("broken"))[-100:],
    }


if __name__ == "__main__":
    main()
