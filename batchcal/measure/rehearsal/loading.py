"""What is known of loading, and which DataLoaders may be tried."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.workers import Start
from batchcal.measure.pipeline.candidates import Candidate, Room, forbidden

LESS_AHEAD: Final = 1
"""Where memory or /dev/shm has no room for two batches of each worker."""
FURTHER_AHEAD: Final = 4
"""Where the training still waits: samples that take unevenly long are evened out by more of them."""


@dataclass(frozen=True)
class Loading:
    room: Room
    batch_bytes: float
    """Of one micro-batch."""
    tensors: int = 1
    """In a batch, at least."""
    stream: bool = False
    """The data can only be read in order, by one worker at most."""
    pinned_workers: int | None = None
    """What the user asked for; then only the threads are chosen."""
    other_start: str | None = None
    """Another start method of workers that may be used. None: there is none here."""
    other_worker_bytes: int = 0
    """Private memory of a worker that is started that way, beside its batches."""
    start: Start | None = None
    """How all workers have to be started. None: as the platform does."""
    why_none: str = ""
    """Why there are no workers. Empty: there may be some."""

    def forbids(self, loader: Candidate, *, start: str | None = None) -> str:
        """Why `loader` cannot work here; empty: it may."""
        if loader.num_workers and self.why_none:
            return self.why_none
        room = self.room if start is None else self.room.model_copy(update={"worker_bytes": self.other_worker_bytes})
        return forbidden(loader, room, batch_bytes=self.batch_bytes, tensors=self.tensors)

    def affordable(self, loader: Candidate) -> Candidate:
        """`loader`, or one that reads less far ahead where that is what it takes."""
        nearer = loader.model_copy(update={"prefetch_factor": LESS_AHEAD})
        return nearer if self.forbids(loader) and not self.forbids(nearer) else loader


def other_start_method(*, pickles: bool, on_host: bool) -> str | None:
    """A start method that may work where the platform's own does not.

    A worker that is not forked shares no locks, threads or open files with the training, but is sent the dataset: it has to
    pickle. A forked one needs no pickling, but must not inherit an accelerator that is in use.
    """
    methods = multiprocessing.get_all_start_methods()  # the platform's own first
    if methods[0] == "fork":
        return "forkserver" if pickles and "forkserver" in methods else None
    return "fork" if on_host and "fork" in methods and methods[0] == "forkserver" else None
