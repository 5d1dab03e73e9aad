"""GradNorm against equal weights on `multiimage`: what becomes of the task that trains slowest, and what balancing costs.

Every arm trains from the same parameters on the same batches. Told is the validation loss of each task as a share of what it
was before training (`left_T1` ...), the mean of three looks near the end; the slowest task of a seed is the one of which equal
weights leave most. Then steps are timed, arms in turn, with the model as it is shipped.

    python -m tests.benchmarks.gradnorm --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.utils.data import Dataset

from batchcal.extras.multitask.gradnorm import INTERVAL, GradNormBalancer, Rule
from batchcal.workload.collator import HeterogeneousBatch, HeterogeneousCollator, HeterogeneousSample
from batchcal.workload.examples import multiimage
from batchcal.workload.examples.volumes import KINDS
from batchcal.workload.task import Task
from tests.benchmarks._report import Journal, finish, paired_ratio, rounds, say

CPU: Final = torch.device("cpu")
COLLATE: Final = HeterogeneousCollator()
ARMS: Final[dict[str, Rule | None]] = {"equal": None, "ratio": "ratio", "paper": "paper"}
BATCH: Final = 24
LOOKS: Final = (0.9, 0.95, 1.0)
"""Shares of the steps after which the validation loss is taken."""
TIMED_BATCH: Final = 32
TIMED_STEPS: Final = 8
"""A turn; a multiple of every interval that is timed."""
INTERVALS: Final = {"every step": 1, f"every {INTERVAL} steps": INTERVAL}


@dataclass(frozen=True)
class Data:
    """Made once for all arms: to generate a study takes as long as to train on it."""

    train: Sequence[HeterogeneousSample]
    evaluation: Sequence[HeterogeneousSample]

    @classmethod
    def of(cls, task: Task, samples: int) -> Data:
        def listed(data: Dataset[object] | None, count: int) -> list[HeterogeneousSample]:
            found = [] if data is None else [data[index] for index in range(count)]
            return [study for study in found if isinstance(study, HeterogeneousSample)]

        return cls(listed(task.train_data, samples), listed(task.eval_data, samples // 10))


def made(seed: int, samples: int, width: int, learning_rate: float) -> Task:
    torch.manual_seed(seed)
    return multiimage.task(CPU, samples=samples, width=width, learning_rate=learning_rate, seed=seed)


def step(task: Task, batch: HeterogeneousBatch, balancer: GradNormBalancer | None) -> None:
    losses = multiimage.losses(task.model, batch)
    if balancer is None:
        torch.stack(list(losses.values())).sum().backward()
    else:
        loss = balancer.loss(losses)
        balancer.observe(losses, weight=float(len(batch)))
        loss.backward()
    task.optimizer.step()
    task.optimizer.zero_grad()
    if balancer is not None:
        balancer.after_step()


def validated(task: Task, studies: Sequence[HeterogeneousSample]) -> dict[str, float]:
    """Mean loss of each task over its own studies."""
    sums = dict.fromkeys(KINDS, 0.0)
    with torch.no_grad():
        for begin in range(0, len(studies), 64):
            batch = COLLATE(studies[begin : begin + 64])
            shares = multiimage.losses(task.model, batch)
            for kind in (kind for kind in KINDS if kind in batch.labels):
                sums[kind] += float(shares[kind]) * len(batch)
    return {kind: sums[kind] / sum(study.task_type == kind for study in studies) for kind in KINDS}


def trained(data: Data, task: Task, rule: Rule | None, steps: int, seed: int) -> dict[str, float]:
    """`left_T1` ... and the weights at the end."""
    balancer = None if rule is None else GradNormBalancer(task.model, rule=rule)
    generator = torch.Generator().manual_seed(seed)
    before = validated(task, data.evaluation)
    looks: list[dict[str, float]] = []
    order: list[int] = []
    for number in range(1, steps + 1):
        if len(order) < BATCH:
            order = torch.randperm(len(data.train), generator=generator).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        step(task, COLLATE([data.train[index] for index in chosen]), balancer)
        if number in {round(share * steps) for share in LOOKS}:
            looks.append(validated(task, data.evaluation))
    left = {f"left_{kind}": round(statistics.mean(look[kind] for look in looks) / before[kind], 4) for kind in KINDS}
    weights = {} if balancer is None else {f"weight_{kind}": round(weight, 2) for kind, weight in balancer.weights.items()}
    return left | weights


def compared(
    journal: Journal, *, seeds: int, steps: int, samples: int, width: int, learning_rate: float
) -> list[dict[str, object]]:
    """A row for each seed and arm; those in the journal are not trained again."""
    rows: list[dict[str, object]] = []
    for seed in range(seeds):
        data: Data | None = None
        for arm, rule in ARMS.items():
            key: dict[str, object] = {
                "seed": seed,
                "arm": arm,
                "steps": steps,
                "samples": samples,
                "width": width,
                "learning_rate": learning_rate,
            }
            row = journal.find(**key)
            if row is None:
                task = made(seed, samples, width, learning_rate)
                data = data or Data.of(task, samples)
                row = {**key, **trained(data, task, rule, steps, seed)}
                journal.add(row)
            say(f"seed {seed} {arm}: {row}")
            rows.append(row)
    return rows


def overhead(count: int) -> dict[str, list[float]]:
    """Seconds of a step by arm, one for each round; the first round warms up and is left out.

    Processor time of a single thread: what else runs on the machine hardly shows in it.
    """
    torch.set_num_threads(1)
    names = ["equal", *INTERVALS]
    tasks = {name: made(0, 300, 8, 2e-3) for name in names}
    balancers = {
        name: GradNormBalancer(tasks[name].model, interval=INTERVALS[name]) if name in INTERVALS else None for name in names
    }
    studies = Data.of(tasks["equal"], 300).train
    batches = [COLLATE(studies[begin : begin + TIMED_BATCH]) for begin in range(0, TIMED_BATCH * TIMED_STEPS, TIMED_BATCH)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in rounds(names, count + 1):
        began = time.process_time()
        for batch in batches:
            step(tasks[name], batch, balancers[name])
        seconds[name].append((time.process_time() - began) / len(batches))
    return {name: taken[1:] for name, taken in seconds.items()}


def number(row: dict[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float)
    return float(value)


def summed_up(rows: list[dict[str, object]]) -> dict[str, object]:
    """What became of the slowest task of each seed, and of the worst-off task of each arm."""
    seeds = sorted({number(row, "seed") for row in rows})
    left = {(number(row, "seed"), str(row["arm"])): {kind: number(row, f"left_{kind}") for kind in KINDS} for row in rows}
    slowest = {seed: max(KINDS, key=lambda kind: left[seed, "equal"][kind]) for seed in seeds}
    summary: dict[str, object] = {"slowest_task": [slowest[seed] for seed in seeds]}
    for arm in ARMS:
        of_slowest = [left[seed, arm][slowest[seed]] for seed in seeds]
        summary[f"{arm}: left of the slowest task, mean"] = round(statistics.mean(of_slowest), 3)
        summary[f"{arm}: left of whichever task has most left, mean"] = round(
            statistics.mean(max(left[seed, arm].values()) for seed in seeds), 3
        )
        if arm != "equal":
            equal = [left[seed, "equal"][slowest[seed]] for seed in seeds]
            summary[f"{arm}: slowest task's loss against equal weights, median ratio"] = round(paired_ratio(of_slowest, equal), 3)
            summary[f"{arm}: better in seeds"] = sum(mine < other for mine, other in zip(of_slowest, equal, strict=True))
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--rounds", type=int, default=12, help="of timed steps; 0: none")
    parser.add_argument("--journal", type=Path, help="go on where a run was stopped, as long as the code is the same")
    arguments = parser.parse_args()
    rows = compared(
        Journal(arguments.journal),
        seeds=arguments.seeds,
        steps=arguments.steps,
        samples=arguments.samples,
        width=arguments.width,
        learning_rate=arguments.learning_rate,
    )
    summary = summed_up(rows)
    if arguments.rounds:
        seconds = overhead(arguments.rounds)
        for name, taken in seconds.items():
            summary[f"{name}: ms of processor time a step, median"] = round(1000 * statistics.median(taken), 1)
            if name != "equal":
                summary[f"{name}: overhead, median of paired ratios"] = round(paired_ratio(taken, seconds["equal"]) - 1, 3)
    columns = ["seed", "arm", *(f"left_{kind}" for kind in KINDS), *(f"weight_{kind}" for kind in KINDS)]
    finish("gradnorm", rows, summary, columns=columns)


if __name__ == "__main__":
    main()
