"""Optimizer steps as a training runs them, timed in their parts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from batchcal.measure.inside.subject import Subject
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group


@dataclass(frozen=True)
class GroupTime:
    """Times of one optimizer step, seconds. The tuples are by micro-batch."""

    step_s: tuple[float, ...]
    """Fetching, forward and backward."""
    fetch_s: tuple[float, ...]
    fetch_cpu_s: tuple[float, ...]
    """Processor time of this thread in the meantime."""
    update_s: float
    samples: int


def timed_group(subject: Subject, batches: Iterator[MicroBatch], count: int) -> GroupTime:
    """Run one group of `count` micro-batches with the function that trainings use.

    Raises:
        StopIteration: there are fewer micro-batches.
    """
    watched = _Watched(batches, count)
    result = run_group(subject.task, watched, device=subject.device, scaler=subject.scaler)
    if subject.device.type != "cpu":
        torch.accelerator.synchronize(subject.device)
    end_s = time.perf_counter()
    marks = watched.start_s
    return GroupTime(
        step_s=tuple(after - before for before, after in itertools.pairwise(marks)),
        fetch_s=tuple(watched.fetch_s),
        fetch_cpu_s=tuple(watched.fetch_cpu_s),
        update_s=max(end_s - marks[-1], 1e-9),
        samples=result.samples,
    )


@dataclass
class _Watched:
    """Passes micro-batches on and holds none: a variable here would keep a batch alive while the next one is made."""

    batches: Iterator[MicroBatch]
    remaining: int
    start_s: list[float] = field(default_factory=list)
    fetch_s: list[float] = field(default_factory=list)
    fetch_cpu_s: list[float] = field(default_factory=list)

    def __iter__(self) -> Iterator[MicroBatch]:
        return self

    def __next__(self) -> MicroBatch:
        cpu = time.thread_time()
        self.start_s.append(time.perf_counter())
        if self.remaining == 0:
            raise StopIteration
        self.remaining -= 1
        fetched = [next(self.batches)]
        self.fetch_s.append(time.perf_counter() - self.start_s[-1])
        self.fetch_cpu_s.append(time.thread_time() - cpu)
        return fetched.pop()
