"""Task: how users point at their own code. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.data import Dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One training, as a factory returns it.

    batchcal builds the loaders, moves the batches to the device, weighs micro-batches and steps the optimizer; the task only
    states what is computed. Construct the model on the device that the factory was given (`def task(device): ...`) or leave it
    on the CPU: it is moved before the first step.
    """

    model: nn.Module
    optimizer: Optimizer
    """Over the parameters of `model`, with the options that training will use."""
    train_data: Dataset[object]
    """Map-style; an IterableDataset works too, its worst case then comes from a bounded look."""
    loss: Callable[..., Tensor]
    """model, batch -> scalar tensor: the MEAN over the batch's weight."""
    eval_data: Dataset[object] | None = None
    collate_fn: Callable[..., object] | None = None
    """list of samples -> batch; default: torch's default_collate."""
    weight_of: Callable[..., float] | None = None
    """batch -> float; default: the number of samples. Tokens for token-averaged losses."""
    size_of: Callable[..., float] | Sequence[float] | None = None
    """sample -> cost, or a sequence of costs by index, so that the largest samples can be found cheaply."""
    group_of: Callable[..., str] | None = None
    """sample -> its task type, for heterogeneous multi-task data."""
    eval_step: Callable[..., object] | None = None
    """model, batch -> anything, under no_grad; default: `loss`."""
    autocast: torch.dtype | None = None
    """dtype for torch.autocast, or None. float16 brings a GradScaler."""
    losses: Callable[..., Mapping[str, Tensor]] | None = None
    """model, batch -> {name: scalar}: several task losses; `loss` is then their weighted sum."""
    metrics: Callable[..., Mapping[str, tuple[float, float]]] | None = None
    """model, eval batch -> {name: (sum, weight)}, reduced over the epoch."""
    label_of: Callable[..., object] | None = None
    """sample -> label, for stratified folds."""
    effective_batch: int | None = None
    """Samples per optimizer step. `--effective-batch`, BATCHCAL_EFFECTIVE_BATCH and `[plan] effective_batch` override it."""
