"""A plain training that knows nothing of batchcal's engine: what a user's own loop would hold in memory at one batch size.

Loads the task, takes worst-case batches, runs steps and then an evaluation, and prints one JSON line. Meant to be started in a
memory cgroup of its own (see oracle.py); it does nothing to survive there.

    python -m tests.benchmarks.plain_training configs/handwriting.toml --batch 512
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

import torch

from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.spec.load import load_task
from tests.benchmarks._reference import reference_of
from tests.benchmarks._task import moved


def status_bytes() -> dict[str, int]:
    """The kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def demand_bytes() -> int:
    """Most anonymous + shared memory held at once since the last reset: the high-water mark less the pages of files."""
    status = status_bytes()
    return status["VmHWM"] - status["RssFile"]


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a TOML config or a SPEC")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--eval-batch", type=int, help="default: the same; 0: no evaluation")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    task = load_task(reference_of(arguments.config), device=arguments.device)
    model, optimizer = task.model.to(device), task.optimizer
    autocast = task.autocast

    def loss_of(batch: object) -> torch.Tensor:
        with torch.autocast(device.type, dtype=autocast) if autocast is not None else contextlib.nullcontext():
            loss: torch.Tensor = task.loss(model, moved(batch, device))
            return loss

    worst = WorstCase.of(task, "train", limit_s=2.0, seed=arguments.seed)
    reset_peak()
    model.train()
    step_s: list[float] = []
    batch: object = None
    last_loss = 0.0
    for _ in range(arguments.steps):
        began = time.perf_counter()
        batch = worst.batch(arguments.batch)  # the one before is still held, as in every `for batch in loader`
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        last_loss = float(loss.detach())
        step_s.append(time.perf_counter() - began)
    train_demand = demand_bytes()
    optimizer.zero_grad(set_to_none=True)
    batch = None

    eval_batch = arguments.batch if arguments.eval_batch is None else arguments.eval_batch
    if eval_batch:
        model.eval()
        evaluated = WorstCase.of(task, "eval", limit_s=2.0, seed=arguments.seed)
        with torch.no_grad():
            for _ in range(3):
                batch = evaluated.batch(eval_batch)
                if task.eval_step is not None:
                    task.eval_step(model, moved(batch, device))
                else:
                    loss_of(batch)
    print(
        json.dumps(
            {
                "batch": arguments.batch,
                "eval_batch": eval_batch,
                "steps": arguments.steps,
                "train_demand_bytes": train_demand,
                "demand_bytes": demand_bytes(),
                "file_bytes": status_bytes()["RssFile"],
                "step_s": sorted(step_s[1:] or step_s)[len(step_s[1:] or step_s) // 2],
                "final_loss": last_loss,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
