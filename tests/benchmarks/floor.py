"""The least that a calibration must do: a new Python imports torch, builds the task, runs three steps of the answer and a group.

`wall_time` runs it under the same limit as a calibration, and compares the two.

    python -m tests.benchmarks.floor configs/handwriting.toml --batch 256 --group 64,64,64,64
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from batchcal.workload.spec.load import load_task
from batchcal.workload.step import move
from tests.benchmarks._reference import reference_of

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a TOML config or a SPEC")
    parser.add_argument("--batch", type=int, required=True, help="the verified micro-batch")
    parser.add_argument("--group", required=True, help="the micro-batches of the plan")
    arguments = parser.parse_args()
    task = load_task(reference_of(arguments.config), device="cpu")

    def batches(size: int) -> Iterator[object]:
        while True:
            yield from DataLoader(task.train_data, size, collate_fn=task.collate_fn)

    def step(batch: object) -> None:
        task.loss(task.model, move(batch, torch.device("cpu"))).backward()

    task.model.train()
    for batch in itertools.islice(batches(arguments.batch), STEPS):
        task.optimizer.zero_grad()
        step(batch)
        task.optimizer.step()
    task.optimizer.zero_grad()
    for size in map(int, arguments.group.split(",")):
        step(next(batches(size)))
    task.optimizer.step()


if __name__ == "__main__":
    main()
