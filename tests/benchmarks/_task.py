"""What the benchmarks need of a task and none of batchcal's engine."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import torch

from batchcal.workload.reference import TaskReference


def reference_of(config: str) -> TaskReference:
    """A TOML config or a SPEC, as `batchcal calibrate` takes it."""
    if not config.endswith(".toml"):
        return TaskReference(spec=config, directory=str(Path.cwd()))
    table = tomllib.loads(Path(config).read_text(encoding="utf-8"))["task"]
    return TaskReference(spec=table["spec"], directory=str(Path.cwd()), arguments=table.get("args", {}), config=config)


def moved(batch: object, device: torch.device) -> object:
    """Every tensor of the nest on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple):
        values = tuple(moved(value, device) for value in batch)
        make = getattr(batch, "_make", tuple)  # a named tuple keeps its names
        return make(values) if callable(make) else values
    if isinstance(batch, list):
        return [moved(value, device) for value in batch]
    return batch


def samples_in(batch: object) -> int:
    """The first dimension of the first tensor; 0 where there is none."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 0
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for value in values if (count := samples_in(value))), 0)
