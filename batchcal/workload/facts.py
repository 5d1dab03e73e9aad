"""Facts about a task, read after it was loaded in a child process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from batchcal.core.values import Record


class TaskFacts(Record):
    """Facts about a task, read after it was loaded in a child process."""

    train_samples: int | None
    """None: an IterableDataset without a length."""
    eval_samples: int | None
    parameters: int
    parameter_bytes: int
    optimizer: str
    batch_bytes_per_sample: float
    """Bytes of the worst-case batch per sample, as collated."""
    worst_case: Literal["size_of", "scan", "partial-scan", "first-samples", "unknown"]
    """Source of the largest samples. `unknown`: the samples do not show a size."""
    worst_size: float | None = None
    unseen_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Largest expected sample of an epoch, as a multiple of the largest known sample. The margin covers it."""
    effective_batch: int | None = None
    """`Task.effective_batch`. None: not set, or written before batchcal recorded it."""
    dataset_pickle_bytes: int | None = None
    """Bytes sent to each DataLoader worker that is not forked. None: the dataset cannot be pickled."""
    kept_bytes_per_sample: float = 0.0
    """Bytes of each sample that stay in memory after it was read, for example in a cache of the dataset."""
    notes: tuple[str, ...] = ()

    @property
    def largest_is_known(self) -> bool:
        """True if the costs of all samples were compared."""
        return self.worst_case in ("size_of", "scan")

    @property
    def kept_bytes(self) -> int:
        """Bytes that a process keeps after it has read all training samples."""
        return int(self.kept_bytes_per_sample * (self.train_samples or 0))
