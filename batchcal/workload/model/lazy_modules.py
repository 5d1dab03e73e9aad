"""Lazy modules (`nn.LazyLinear`): their parameters get a shape from the first batch, before anything inspects them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from itertools import chain, islice
from typing import Final

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset, IterableDataset, default_collate

from batchcal.core.errors import BatchcalError
from batchcal.workload.data.fetch import fetch, sample_at
from batchcal.workload.spec.user_traceback import blame
from batchcal.workload.step import loss_of, move, prepare
from batchcal.workload.task import Task

SIZES: Final = (2, 4, 8, 32, 1)
"""Batch sizes to try: BatchNorm refuses one sample, and some tasks refuse others."""
LOOK_LIMIT: Final = 256
"""Samples that are looked at, where some are None."""


def initialise_lazy(task: Task, device: torch.device) -> None:
    """Run the forward pass of a first batch, where a parameter of the model has no shape yet. Buffers stay as they were.

    Raises:
        UserCodeError: the forward pass fails at each size.
    """
    if not any(is_lazy(value) for value in chain(task.model.parameters(), task.model.buffers())):
        return
    prepare(task, device)
    before = [(buffer, buffer.clone()) for buffer in task.model.buffers() if not is_lazy(buffer)]
    fresh = [
        module
        for module in task.model.modules()
        if isinstance(module, _NormBase) and any(is_lazy(buffer) for buffer in module.buffers(recurse=False))
    ]
    first: Exception | None = None
    for size in SIZES:
        try:
            with torch.no_grad():
                loss_of(task, move(_batch(task, size), device))
            break
        except BatchcalError:
            raise
        except Exception as error:  # noqa: BLE001 - a size that the task refuses
            first = first or error
    else:
        if first is not None:
            raise blame(
                first, "the first batch of a model with lazy modules", try_="run the same forward pass in the factory"
            ) from first
    for buffer, value in before:
        buffer.data.copy_(value)
    for module in fresh:
        module.reset_running_stats()


def _batch(task: Task, size: int) -> object:
    data = task.train_data
    if isinstance(data, IterableDataset):
        samples = list(islice((sample for sample in islice(data, LOOK_LIMIT) if sample is not None), size))
        merge: Callable[..., object] = task.collate_fn or default_collate
        return merge(samples)
    return fetch(data, list(islice(_readable(data), size)), task.collate_fn)


def _readable(data: Dataset[object]) -> Iterator[int]:
    """Indices of samples that are not None."""
    count = len(data) if isinstance(data, Sized) else LOOK_LIMIT
    return (index for index in range(min(count, LOOK_LIMIT)) if sample_at(data, index) is not None)
