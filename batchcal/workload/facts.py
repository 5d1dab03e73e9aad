"""What a task says about itself once it is loaded in a child."""

from __future__ import annotations

from typing import Literal

from batchcal.core.values import Record


class TaskFacts(Record):
    """What the task said about itself once it was loaded in a child."""

    train_samples: int | None
    """None: an IterableDataset without a length."""
    eval_samples: int | None
    parameters: int
    parameter_bytes: int
    optimizer: str
    batch_bytes_per_sample: float
    """Bytes of the worst-case batch per sample, as collated."""
    worst_case: Literal["size_of", "scan", "partial-scan", "first-samples"]
    """How the largest samples were found."""
    worst_size: float | None = None
    dataset_pickle_bytes: int | None = None
    """What each DataLoader worker that is not forked must be sent. None: does not pickle."""
    notes: tuple[str, ...] = ()
