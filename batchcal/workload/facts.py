"""What a task says about itself once it is loaded in a child."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
    worst_case: Literal["size_of", "scan", "partial-scan", "first-samples", "unknown"]
    """How the largest samples were found. `unknown`: samples show no size."""
    worst_size: float | None = None
    unseen_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """How much larger than the largest known sample the largest of an epoch may be. The margin covers it."""
    effective_batch: int | None = None
    """`Task.effective_batch`. None: not set, or written before batchcal recorded it."""
    dataset_pickle_bytes: int | None = None
    """What each DataLoader worker that is not forked must be sent. None: does not pickle."""
    kept_bytes_per_sample: float = 0.0
    """What the process keeps of each sample that it reads, by a cache of the dataset."""
    notes: tuple[str, ...] = ()

    @property
    def largest_is_known(self) -> bool:
        """Whether the largest samples were found by all costs."""
        return self.worst_case in ("size_of", "scan")

    @property
    def kept_bytes(self) -> int:
        """What a process keeps once it has read all training samples."""
        return int(self.kept_bytes_per_sample * (self.train_samples or 0))
