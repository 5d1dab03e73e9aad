"""Setting of every child of a calibration: how to load the task, and its largest samples."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.records.workers import Start
from batchcal.calibration.schema import OFF
from batchcal.core.values import Frozen
from batchcal.values.setup import Setup
from batchcal.workload.data.in_flight import PREFETCH_FACTOR
from batchcal.workload.spec.reference import TaskReference

SMALLEST: Final = 2
"""Size of the usual tiny batch."""


class ChildSetting(Frozen):
    """Values that are the same for every child of a calibration on one device."""

    reference: TaskReference
    device: str
    seed: int
    activation_checkpointing: str = OFF
    intra_op_threads: int
    interop_threads: int = 1
    workers: int = 0
    start: Start | None = None
    """Start method of workers. None: the default of the platform."""
    prefetch_factor: int = PREFETCH_FACTOR
    lost_blocks: int | None = None
    """Number of blocks of a step that are lost to handles of workers' batches, see `heap.handles`. None: unknown."""
    smallest_batch: int
    """Batch size of the warm-up: two samples, since BatchNorm refuses one, or the smallest size that the task accepts. One sample
    if two do not fit."""
    multiple_of: int = 1
    """Divisor of every batch of a static curve."""
    one_size: bool = False
    """A process runs batches of one size only, in the warm-up too."""
    accelerator_free_bytes: int | None = None
    """Free memory of the device before the first context of batchcal, bytes. It gives the share of a context."""

    def under(self, setup: Setup) -> ChildSetting:
        """Return the setting of a child that runs with the threads and workers of `setup`."""
        changes: dict[str, object] = {
            "intra_op_threads": setup.intra_op_threads,
            "interop_threads": setup.interop_threads,
            "workers": setup.num_workers,
            "start": setup.multiprocessing_context,
            "prefetch_factor": setup.prefetch_factor or PREFETCH_FACTOR,
        }
        return self.model_copy(update=changes)

    def warm_up_size(self, *sizes: int) -> int:
        """Return the tiny size of a process that runs `sizes` afterwards."""
        if self.one_size:
            return sizes[0]
        # Two samples may not fit although one does. A larger size is the smallest that the task accepts.
        return min(self.smallest_batch, *sizes) if self.smallest_batch <= SMALLEST else self.smallest_batch


class JobArguments(Frozen):
    """Arguments of a job that loads the task."""

    setting: ChildSetting


class OrderedArguments(JobArguments):
    """Arguments of a job that uses the largest samples."""

    order: tuple[int, ...] | None = None
    """Indices of the largest training samples, largest first, from the examination. For a probe: of the data of its mode. None:
    the child determines them again."""
