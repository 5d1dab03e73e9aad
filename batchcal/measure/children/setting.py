"""What every child of a calibration is given: how to load the task, and its largest samples."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.schema import OFF
from batchcal.calibration.workers import Start
from batchcal.core.values import Frozen
from batchcal.workload.in_flight import PREFETCH_FACTOR
from batchcal.workload.reference import TaskReference

SMALLEST: Final = 2
"""The usual tiny batch."""


class Setting(Frozen):
    """What is the same for every child of a calibration on one device."""

    reference: TaskReference
    device: str
    seed: int
    activation_checkpointing: str = OFF
    intra_op_threads: int
    interop_threads: int = 1
    workers: int
    start: Start | None = None
    """How workers are started. None: as the platform does."""
    prefetch_factor: int = PREFETCH_FACTOR
    lost_blocks: int | None = None
    """Blocks of a step that are lost to handles of workers' batches, see `heap.handles`. None: unknown."""
    smallest_batch: int
    """Batch of the warm-up: two samples, since BatchNorm refuses one, or the smallest that the task takes; one where two do not
    fit."""
    multiple_of: int = 1
    """Of every batch of a static curve."""
    one_size: bool = False
    """A process runs batches of one size only, in the warm-up too."""
    accelerator_free_bytes: int | None = None
    """Free on the device before any of our contexts; with it a context's own share is known."""

    def warm_up_size(self, *sizes: int) -> int:
        """The tiny size of a process that runs `sizes` then."""
        if self.one_size:
            return sizes[0]
        # Two samples may not fit where one does; a larger size is the smallest that the task takes.
        return min(self.smallest_batch, *sizes) if self.smallest_batch <= SMALLEST else self.smallest_batch


class JobArguments(Frozen):
    """Of a job that loads the task."""

    setting: Setting
    order: tuple[int, ...] | None = None
    """Indices of the largest training samples, largest first, found by the examination; for a probe those of the mode's data.
    None: to be found again."""
