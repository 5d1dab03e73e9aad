"""Accelerate's find_executable_batch_size around twenty training steps of one of our tasks. Started by finders.py under a limit.

Prints one JSON line: the answer, every size that it really ran a step with, seconds.
"""

from __future__ import annotations

import argparse
import json
import time

from accelerate.utils import find_executable_batch_size
from torch.utils.data import DataLoader

from batchcal.workload.spec.load import load_task
from tests.benchmarks._reference import reference_of
from tests.benchmarks._task import samples_in

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--ceiling", type=int, default=8192)
    arguments = parser.parse_args()
    reference = reference_of(arguments.config)
    ran: list[int] = []

    def train(batch_size: int) -> int:
        # Made anew at each attempt, as its documentation asks.
        task = load_task(reference, device="cpu")
        loader: DataLoader[object] = DataLoader(task.train_data, batch_size=batch_size, collate_fn=task.collate_fn, shuffle=True)
        task.model.train()
        for step, batch in enumerate(loader):
            if step == STEPS:
                break
            task.optimizer.zero_grad()
            task.loss(task.model, batch).backward()
            task.optimizer.step()
            ran.append(samples_in(batch))
        return batch_size

    began = time.perf_counter()
    answer = find_executable_batch_size(train, starting_batch_size=arguments.ceiling)()
    print(json.dumps({"answer": answer, "ran": sorted(set(ran)), "search_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
