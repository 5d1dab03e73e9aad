"""Facts about loading, and the DataLoaders that may be tried."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.records.workers import Start
from batchcal.measure.pipeline.candidates import CandidateLimits, LoaderCandidate, forbidden

LESS_AHEAD: Final = 1
"""Prefetch factor if memory or /dev/shm has no room for two batches of each worker."""
FURTHER_AHEAD: Final = 4
"""Prefetch factor if the training still waits: more samples ahead even out different loading times."""


@dataclass(frozen=True)
class Loading:
    room: CandidateLimits
    batch_bytes: float
    """Memory of one micro-batch."""
    tensors: int = 1
    """Minimum number of tensors in a batch."""
    stream: bool = False
    """True if the data can only be read in sequence, by one worker at most."""
    pinned_workers: int | None = None
    """Number of workers that the user requested. Then only the threads are chosen."""
    other_start: str | None = None
    """Another start method of workers that may be used. None: there is none here."""
    other_worker_bytes: int = 0
    """Private memory of a worker with that start method, without its batches."""
    start: Start | None = None
    """Required start method of all workers. None: the platform's default."""
    why_none: str = ""
    """Reason why there are no workers. Empty: there may be some."""

    def forbids(self, loader: LoaderCandidate, *, start: str | None = None) -> str:
        """Return the reason why `loader` cannot work here. Empty: it may."""
        if loader.num_workers and self.why_none:
            return self.why_none
        room = self.room if start is None else self.room.model_copy(update={"worker_bytes": self.other_worker_bytes})
        return forbidden(loader, room, batch_bytes=self.batch_bytes, tensors=self.tensors)

    def affordable(self, loader: LoaderCandidate) -> LoaderCandidate:
        """Return `loader`, or one that reads less far ahead if only that one may work."""
        reduced = loader.model_copy(update={"prefetch_factor": LESS_AHEAD})
        return reduced if self.forbids(loader) and not self.forbids(reduced) else loader


def other_start_method(*, pickles: bool, on_host: bool) -> str | None:
    """Return a start method that may work if the platform's own does not.

    A worker that is not forked shares no locks, threads or open files with the training. The dataset is sent to it, so it has to
    pickle. A forked one needs no pickling, but must not inherit an accelerator that is in use.
    """
    methods = multiprocessing.get_all_start_methods()  # the platform's own is first
    if methods[0] == "fork":
        return "forkserver" if pickles and "forkserver" in methods else None
    return "fork" if on_host and "fork" in methods and methods[0] == "forkserver" else None
