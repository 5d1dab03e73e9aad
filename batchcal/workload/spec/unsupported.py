"""Tasks that other trainers accept and batchcal does not, each refused by its name with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from batchcal.core.errors import UserCodeError
from batchcal.core.units import count_of
from batchcal.workload.data.loader_as_data import refuse_loader
from batchcal.workload.model.optimizers import needs_closure
from batchcal.workload.task import Task


def refuse_unsupported(task: Task, spec: str) -> None:
    """Raises:
    UserCodeError: several optimizers, a DataLoader in the place of a dataset, or float16 with an optimizer that needs a closure.
    """
    for name, data in (("train_data", task.train_data), ("eval_data", task.eval_data)):
        if isinstance(data, DataLoader):
            raise refuse_loader(data, name, spec)
        held_data: object = data
        indexed = any(hasattr(held_data, method) for method in ("__getitem__", "__getitems__"))
        if not indexed and not isinstance(held_data, IterableDataset) and isinstance(held_data, Iterable):
            once = isinstance(held_data, Iterator)
            raise UserCodeError(
                f"{spec} returned a Task whose {name} is of type {type(held_data).__name__}, which "
                + ("can be read once" if once else "is read in order and is no IterableDataset"),
                known="each measurement and each epoch reads the data from its beginning"
                if once
                else "torch's DataLoader takes it for a dataset that is read by index",
                try_="class Stream(torch.utils.data.IterableDataset): def __iter__(self): the loop that yields the samples",
            )
    held: object = task.optimizer
    several = list(held.values()) if isinstance(held, dict) else held
    if isinstance(several, list | tuple) and several and all(isinstance(one, Optimizer) for one in several):
        names = ", ".join(type(one).__name__ for one in several)
        raise UserCodeError(
            f"{spec} returned a Task with {count_of(len(several), 'optimizer')} ({names})",
            known="a task has one optimizer, which batchcal steps once for each effective batch",
            try_="one optimizer with a parameter group for each: torch.optim.AdamW([{'params': ..., 'lr': 1e-3}, "
            "{'params': ..., 'lr': 1e-4}]); or a class derived from torch.optim.Optimizer whose step() steps all of them",
        )
    if task.autocast is torch.float16 and isinstance(held, Optimizer) and needs_closure(held):
        raise UserCodeError(
            f"{spec} returned a Task with {type(held).__name__} and autocast=torch.float16",
            known=f"{type(held).__name__} computes the loss again within its step, and torch's GradScaler has no such step",
            try_="autocast=torch.bfloat16, or None",
        )
