"""What benchmarks run in batchcal's own children."""

from __future__ import annotations

import dataclasses
import time

from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.workload.task import Task


def ready(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """The moment at which torch can be used: CLOCK_MONOTONIC is one clock for all processes of a machine."""
    import torch

    torch.zeros(1)
    return {"at": time.monotonic()}


def with_optimizer(device: str, config: str, optimizer: str) -> Task:
    """A factory: the task of `config` with another optimizer. `as-is` keeps its own."""
    import torch

    from batchcal.workload.spec.load import load_task
    from tests.benchmarks._reference import reference_of

    task = load_task(reference_of(config), device=device)
    match optimizer:
        case "sgd":
            return dataclasses.replace(task, optimizer=torch.optim.SGD(task.model.parameters(), lr=0.01))
        case "adamw":
            return dataclasses.replace(task, optimizer=torch.optim.AdamW(task.model.parameters(), lr=1e-3))
        case _:
            return task
