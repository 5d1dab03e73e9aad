"""What the benchmarks need of a batch and none of batchcal's engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch


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
