"""Inside a child: fetches batches with one DataLoader after the other. Named by the parent, never called by it."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.pipeline.candidates import Candidate, candidates, forbidden
from batchcal.measure.pipeline.request import FetchAnswer, FetchArguments
from batchcal.measure.race.race import Race
from batchcal.runtime.batches import StreamBatches, unchanged
from batchcal.runtime.loader import leave_interrupts_to_the_parent
from batchcal.runtime.worker_deaths import raise_outside_of_queues
from batchcal.workload.batches import nest_bytes
from batchcal.workload.load import load_task
from batchcal.workload.step import map_tensors
from batchcal.workload.task import Task

LEAST_S: Final = 1.0
"""For the rounds, however long it took to load the task."""
FIRST_ROUND_SHARE: Final = 0.3
"""Of the time: what the first round may be expected to take. Batches are made smaller where that is not enough, since a single
round says little."""
SMALLEST_BATCH: Final = 8
"""Smaller ones would time the loader and not the data."""
TRIES: Final = 3
NO_WORKERS: Final = Candidate(num_workers=0, prefetch_factor=None)
HANGS_S: Final = 10.0
"""A worker that brings nothing for so long is taken for hung."""


def fetch(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Races the DataLoaders that may work here; tells each turn as it begins: it may not live to its end."""
    request = FetchArguments.model_validate(arguments)
    context.phase("load")
    torch.manual_seed(request.seed)
    task = load_task(request.reference, device="cpu")
    context.phase("warm-up")
    source = Source.of(task, request.seed)
    limit_s = max(LEAST_S, request.until_s - time.monotonic())
    batch, first = source.affordable(request.batch, request.fetches, limit_s)
    size, tensors = nest_bytes(first), _tensors(first)
    del first
    gc.collect()
    gc.freeze()  # else the first collection in a worker copies what it shares with us
    chosen = candidates(request.cores, pinned_workers=request.pinned_workers, stream=source.stream)
    race = Race(len(chosen))
    for place, candidate in enumerate(chosen):
        too_many = request.fewer_than is not None and candidate.num_workers >= request.fewer_than
        why = request.why_fewer if too_many else forbidden(candidate, request.room, batch_bytes=size, tensors=tensors)
        if why:
            race.fail(place, why)
    context.phase("measure")
    rounds: list[dict[int, tuple[float, ...]]] = []
    until = max(request.until_s, time.monotonic() + LEAST_S)
    while not race.over and time.monotonic() < until:
        told: dict[int, tuple[float, ...]] = {}
        for place in race.order():
            if time.monotonic() >= until and (told or rounds):
                break
            context.tell({"workers": chosen[place].num_workers})
            try:
                told[place] = source.fetch(chosen[place], batch, request.fetches)
            except Exception as error:
                if chosen[place].num_workers == 0:
                    raise  # no worker is to blame: the data itself fails
                race.fail(place, _in_short(error))
                # The error holds itself and with it the loader, whose workers would end five seconds after a collection finds it.
                traceback.clear_frames(error.__traceback__)
        race.tell({place: sum(seconds) / len(seconds) for place, seconds in told.items()})
        rounds.append(told)
    failed = {runner.place: runner.why for runner in race.runners if runner.left == "failed"}
    answer = FetchAnswer(batch=batch, candidates=chosen, rounds=tuple(rounds), failed=failed)
    return answer.model_dump(mode="json")


def _in_short(error: Exception) -> str:
    """What a worker's error is in one line: torch wraps its traceback, whose last line says it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    wrapped = lines[0].startswith("Caught ")
    return lines[-1].strip() if wrapped else lines[0].strip()


@dataclass(frozen=True)
class Source:
    """Where batches come from."""

    task: Task
    seed: int
    stream: bool

    @classmethod
    def of(cls, task: Task, seed: int) -> Source:
        return cls(task, seed, isinstance(task.train_data, IterableDataset))

    def affordable(self, wished: int, fetches: int, limit_s: float) -> tuple[int, object]:
        """The batch to fetch, and one of them: as large as wished, or as lets a first round end in time."""
        samples = len(self.task.train_data) if isinstance(self.task.train_data, Sized) else None
        batch = wished if samples is None else max(1, min(wished, samples))
        first: object = None
        for _ in range(TRIES):
            batches = iter(self._loader(NO_WORKERS, batch, 2))
            next(batches)  # opens files, fills caches
            began = time.perf_counter()
            first = next(batches)
            took = time.perf_counter() - began
            fitting = int(batch * limit_s * FIRST_ROUND_SHARE / max(8 * fetches * took, 1e-9))
            if fitting >= batch or batch <= SMALLEST_BATCH:
                break
            batch = max(min(SMALLEST_BATCH, batch), fitting)
        return batch, first

    def fetch(self, candidate: Candidate, batch: int, fetches: int) -> tuple[float, ...]:
        """Seconds that each of `fetches` batches was waited for, once the workers had begun."""
        # The first of each worker, which all begin at once; what comes then comes as fast as they work.
        dropped = max(1, candidate.num_workers)
        loader = self._loader(candidate, batch, dropped + fetches)
        seconds: list[float] = []
        began = time.perf_counter()
        for position, fetched in enumerate(loader):
            del fetched  # before the next is made, as in a training
            now = time.perf_counter()
            if position >= dropped:
                seconds.append(now - began)
            began = now
            if len(seconds) == fetches:
                break
        if not seconds:
            raise ValueError(f"the data ended before {dropped + 1} batches of {batch} samples were fetched")
        return tuple(seconds)

    def _loader(self, candidate: Candidate, batch: int, count: int) -> DataLoader[object]:
        workers = candidate.num_workers
        data: Dataset[object] = self.task.train_data
        timeout = HANGS_S if workers else 0.0
        if workers:
            raise_outside_of_queues()
        if isinstance(data, IterableDataset):
            return DataLoader(
                StreamBatches(Again(data), (batch,), self.task.collate_fn or default_collate),
                batch_size=None,
                collate_fn=unchanged,
                num_workers=workers,
                prefetch_factor=candidate.prefetch_factor,
                timeout=timeout,
                worker_init_fn=leave_interrupts_to_the_parent,
            )
        return DataLoader(
            data,
            batch_sampler=self._indices(batch, count),
            collate_fn=self.task.collate_fn,
            num_workers=workers,
            prefetch_factor=candidate.prefetch_factor,
            timeout=timeout,
            generator=torch.Generator().manual_seed(self.seed),
            worker_init_fn=leave_interrupts_to_the_parent,
        )

    def _indices(self, batch: int, count: int) -> list[list[int]]:
        """Any samples, the same for every candidate; however small the dataset is, there are enough."""
        samples = len(self.task.train_data) if isinstance(self.task.train_data, Sized) else 0
        generator = torch.Generator().manual_seed(self.seed)
        drawn: list[list[int]] = torch.randint(samples, (count, batch), generator=generator).tolist()
        return drawn


class Again(IterableDataset[object]):
    """A stream that begins anew when it ends."""

    def __init__(self, stream: IterableDataset[object]) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[object]:
        while True:
            came = False
            for sample in self.stream:
                came = True
                yield sample
            if not came:
                return


def _tensors(batch: object) -> int:
    found: list[None] = []

    def count(tensor: Tensor) -> Tensor:
        found.append(None)
        return tensor

    map_tensors(batch, count)
    return len(found)
