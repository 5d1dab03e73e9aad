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
        dataset: object = data
        indexed = any(hasattr(dataset, method) for method in ("__getitem__", "__getitems__"))
        if not indexed and not isinstance(dataset, IterableDataset) and isinstance(dataset, Iterable):
            once = isinstance(dataset, Iterator)
            raise UserCodeError(
                f"{spec} returned a Task whose {name} is of type {type(dataset).__name__}, which "
                + ("can be read only once" if once else "is read in order but is not an IterableDataset"),
                known="each measurement and each epoch reads the data from the beginning"
                if once
                else "torch's DataLoader would read it by index, with __getitem__, which it does not have",
                try_="class Stream(torch.utils.data.IterableDataset), with the loop that yields the samples in its __iter__",
            )
    optimizer: object = task.optimizer
    optimizers = list(optimizer.values()) if isinstance(optimizer, dict) else optimizer
    if isinstance(optimizers, list | tuple) and optimizers and all(isinstance(item, Optimizer) for item in optimizers):
        names = ", ".join(type(item).__name__ for item in optimizers)
        raise UserCodeError(
            f"{spec} returned a Task with {count_of(len(optimizers), 'optimizer')} ({names})",
            known="a task has one optimizer; batchcal calls its step() once per effective batch",
            try_="one optimizer with several parameter groups: torch.optim.AdamW([{'params': ..., 'lr': 1e-3}, "
            "{'params': ..., 'lr': 1e-4}]); or a subclass of torch.optim.Optimizer whose step() calls the step() of each",
        )
    if task.autocast is torch.float16 and isinstance(optimizer, Optimizer) and needs_closure(optimizer):
        raise UserCodeError(
            f"{spec} returned a Task with {type(optimizer).__name__} and autocast=torch.float16",
            known=f"{type(optimizer).__name__} needs a closure in step(), which torch's GradScaler does not support",
            try_="autocast=torch.bfloat16, or autocast=None",
        )
