"""A training as most are written, with PyTorch's defaults: shuffled DataLoader, no workers, glibc, torch's own threads.

python -m tests.benchmarks.plain_epochs configs/handwriting.toml --batch 512 --samples 60000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sized

import torch
from torch.utils.data import DataLoader

from batchcal.workload.spec.load import load_task
from tests.benchmarks._reference import reference_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a TOML config or a SPEC")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True, help="in whole epochs, at least")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    task = load_task(reference_of(arguments.config), device="cpu")
    size, workers = arguments.batch, arguments.workers
    train = DataLoader(task.train_data, size, shuffle=True, num_workers=workers, collate_fn=task.collate_fn)
    held = None if task.eval_data is None else DataLoader(task.eval_data, batch_size=size, collate_fn=task.collate_fn)
    each = len(task.train_data) if isinstance(task.train_data, Sized) else arguments.samples
    began, samples = time.perf_counter(), 0
    while samples < arguments.samples:
        task.model.train()
        for batch in train:
            task.optimizer.zero_grad()
            loss = task.loss(task.model, batch)
            loss.backward()
            task.optimizer.step()
        samples += each
        task.model.eval()
        with torch.no_grad():
            for batch in held or ():
                (task.eval_step or task.loss)(task.model, batch)
    print(json.dumps({"samples": samples, "wall_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
