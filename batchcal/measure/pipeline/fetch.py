"""Code of a child: fetches batches with one DataLoader after another. The parent refers to it by name and does not call it."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Final

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from batchcal.calibration.records.workers import LoaderWorkers, Start
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.pipeline.candidates import CandidateLimits, LoaderCandidate, candidates, forbidden
from batchcal.measure.pipeline.job import FetchAnswer, FetchArguments
from batchcal.measure.race.race import Race
from batchcal.measure.workers.child import anonymous_bytes, examine
from batchcal.measure.workers.report import report_of
from batchcal.measure.workers.trial import trial_of
from batchcal.runtime.batches import StreamBatches, unchanged
from batchcal.runtime.worker_deaths import raise_while_fetching
from batchcal.runtime.worker_processes import Loader, leave_signals_to_the_parent
from batchcal.workload.data.fetch import tolerant
from batchcal.workload.data.sample_size import nest_bytes, tensors_in
from batchcal.workload.spec.load import load_task
from batchcal.workload.task import Task

LEAST_S: Final = 1.0
"""Minimum seconds for the rounds, however long it took to load the task."""
FIRST_ROUND_SHARE: Final = 0.3
"""Share of the time that the first round may be expected to take. If that is not enough, batches are made smaller, because a
single round proves little."""
SMALLEST_BATCH: Final = 8
"""Smaller batches would measure the loader and not the data."""
TURN_S: Final = 0.02
"""Seconds of a turn without workers. If the batches take less, more are fetched. Linux gives a process 1-4 ms at a time: a turn
of one millisecond may take several times as long as the next."""
TIMINGS: Final = 3
"""Timings of one batch, if it is cheap. The shortest counts."""
MOST_FETCHES: Final = 128
"""Maximum number of batches in a turn: with workers, a batch takes about a millisecond, whatever the data costs."""
TRIES: Final = 3
NO_WORKERS: Final = LoaderCandidate(num_workers=0, prefetch_factor=None)
HANGS_S: Final = 10.0
"""Seconds after which a worker that delivers nothing is considered hung."""


def fetch(request: FetchArguments, context: ChildContext) -> JSON:
    """Race the DataLoaders that may work here. Report each turn when it begins: the process may not live to its end."""
    context.phase("load")
    torch.manual_seed(request.seed)
    before = anonymous_bytes()
    task = load_task(request.reference, device="cpu")
    context.phase("warm-up")
    source = SampleSource.of(task, request.seed)
    context.send({"workers": 1})  # they may need more memory than there is
    loader_workers = _try_workers(request, task, anonymous_before=before)
    context.send({"workers": 0})
    limit_s = max(LEAST_S, request.until_s - time.monotonic())
    affordable = source.affordable(request.batch, request.fetches, limit_s)
    batch, fetches, first = affordable.batch, affordable.fetches, affordable.first
    size, tensors = nest_bytes(first), sum(1 for _ in tensors_in(first))
    del first, affordable
    gc.collect()
    gc.freeze()  # else the first collection in a worker copies the memory that it shares with this process
    chosen = candidates(request.cores, pinned_workers=request.pinned_workers, stream=source.stream)
    race = Race(len(chosen))
    for place, candidate in enumerate(chosen):
        too_many = request.fewer_than is not None and candidate.num_workers >= request.fewer_than
        why = (
            loader_workers.why_none
            if candidate.num_workers and loader_workers.why_none
            else request.why_fewer
            if too_many
            else forbidden(candidate, _room(request, loader_workers), batch_bytes=size, tensors=tensors)
        )
        if why:
            race.fail(place, why)
    context.phase("measure")
    rounds: list[dict[int, tuple[float, ...]]] = []
    until = max(request.until_s, time.monotonic() + LEAST_S)
    while not race.over and time.monotonic() < until:
        waits: dict[int, tuple[float, ...]] = {}
        for place in race.order():
            if time.monotonic() >= until and (waits or rounds):
                break
            context.send({"workers": chosen[place].num_workers})
            try:
                waits[place] = source.fetch(chosen[place], batch, fetches, start=loader_workers.start)
            except Exception as error:
                if chosen[place].num_workers == 0:
                    raise  # no worker is to blame: the data itself fails
                race.fail(place, _in_short(error))
                # The error refers to itself and to the loader, whose workers would end five seconds after a garbage collection.
                traceback.clear_frames(error.__traceback__)
        race.record({place: sum(seconds) / len(seconds) for place, seconds in waits.items()})
        rounds.append(waits)
    failed = {runner.place: runner.why for runner in race.runners if runner.left == "failed"}
    answer = FetchAnswer(
        batch=batch, fetches=fetches, candidates=chosen, rounds=tuple(rounds), failed=failed, workers=loader_workers
    )
    return answer.model_dump(mode="json")


def _try_workers(request: FetchArguments, task: Task, *, anonymous_before: int) -> LoaderWorkers:
    """Try workers on a few samples, before this process reads any. See `examine`."""
    if request.pinned_workers == 0 or (request.fewer_than is not None and request.fewer_than <= 1):
        return LoaderWorkers()
    left_s = max(LEAST_S, request.until_s - time.monotonic())
    trial = trial_of("cpu", "default", requested=request.pinned_workers, left_s=left_s)
    answer = examine(
        task,
        workers=trial.workers,
        seed=request.seed,
        read_s=trial.read_s,
        hang_s=trial.hang_s,
        anonymous_before=anonymous_before,
    )
    return report_of(answer).workers


def _room(request: FetchArguments, loader_workers: LoaderWorkers) -> CandidateLimits:
    """Return the room for workers, with their measured size if that is larger."""
    return request.room.model_copy(update={"worker_bytes": max(request.room.worker_bytes, loader_workers.bytes)})


def _in_short(error: Exception) -> str:
    """Return a worker's error in one line. torch wraps the traceback, and its last line is the error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    wrapped = lines[0].startswith("Caught ")
    return lines[-1].strip() if wrapped else lines[0].strip()


@dataclass(frozen=True)
class Affordable:
    """Batches that a turn fetches."""

    batch: int
    fetches: int
    first: object
    """One batch of this size."""


@dataclass(frozen=True)
class SampleSource:
    """Source of batches."""

    task: Task
    seed: int
    stream: bool

    @classmethod
    def of(cls, task: Task, seed: int) -> SampleSource:
        return cls(task, seed, isinstance(task.train_data, IterableDataset))

    def affordable(self, requested: int, fetches: int, limit_s: float) -> Affordable:
        """Return the requested batch or, to end a first round in time, a smaller one. `fetches` per turn, or more if it is
        cheap."""
        samples = len(self.task.train_data) if isinstance(self.task.train_data, Sized) else None
        batch = requested if samples is None else max(1, min(requested, samples))
        first: object = None
        duration_s = 0.0
        for _ in range(TRIES):
            batches = iter(self._loader(NO_WORKERS, batch, 2))
            next(batches)  # opens files, fills caches
            start_s = time.perf_counter()
            first = next(batches)
            duration_s = time.perf_counter() - start_s
            fitting = int(batch * limit_s * FIRST_ROUND_SHARE / max(8 * fetches * duration_s, 1e-9))
            if fitting >= batch or batch <= SMALLEST_BATCH:
                break
            batch = max(min(SMALLEST_BATCH, batch), fitting)
        if duration_s < TURN_S:
            duration_s = min(duration_s, *self.fetch(NO_WORKERS, batch, TIMINGS))
        steady = min(MOST_FETCHES, math.ceil(TURN_S / max(duration_s, 1e-9)))
        return Affordable(batch, max(fetches, steady), first)

    def fetch(self, candidate: LoaderCandidate, batch: int, fetches: int, *, start: Start | None = None) -> tuple[float, ...]:
        """Return the seconds of waiting for each of `fetches` batches, after the workers have begun."""
        # The first batch of each worker: all begin at once. Later batches arrive as fast as the workers work.
        dropped = max(1, candidate.num_workers)
        loader = self._loader(candidate, batch, dropped + fetches, start=start if candidate.num_workers else None)
        seconds: list[float] = []
        last_s = time.perf_counter()
        for position, fetched in enumerate(loader):
            del fetched  # before the next batch is made, as in a training
            now = time.perf_counter()
            if position >= dropped:
                seconds.append(now - last_s)
            last_s = now
            if len(seconds) == fetches:
                break
        if not seconds:
            raise ValueError(f"the data ended before {dropped + 1} batches of {batch} samples were fetched")
        return tuple(seconds)

    def _loader(self, candidate: LoaderCandidate, batch: int, count: int, *, start: Start | None = None) -> DataLoader[object]:
        workers = candidate.num_workers
        data: Dataset[object] = self.task.train_data
        timeout = HANGS_S if workers else 0.0
        if workers:
            raise_while_fetching()
        if isinstance(data, IterableDataset):
            return Loader(
                StreamBatches(Again(data), (batch,), tolerant(self.task.collate_fn) or default_collate),
                batch_size=None,
                collate_fn=unchanged,
                num_workers=workers,
                prefetch_factor=candidate.prefetch_factor,
                timeout=timeout,
                multiprocessing_context=start,
                worker_init_fn=leave_signals_to_the_parent,
            )
        return Loader(
            data,
            batch_sampler=self._indices(batch, count),
            collate_fn=tolerant(self.task.collate_fn),
            num_workers=workers,
            prefetch_factor=candidate.prefetch_factor,
            timeout=timeout,
            multiprocessing_context=start,
            generator=torch.Generator().manual_seed(self.seed),
            worker_init_fn=leave_signals_to_the_parent,
        )

    def _indices(self, batch: int, count: int) -> list[list[int]]:
        """Return random samples, the same for every candidate. There are enough, however small the dataset is."""
        samples = len(self.task.train_data) if isinstance(self.task.train_data, Sized) else 0
        generator = torch.Generator().manual_seed(self.seed)
        indices: list[list[int]] = torch.randint(samples, (count, batch), generator=generator).tolist()
        return indices


class Again(IterableDataset[object]):
    """A stream that starts again when it ends."""

    def __init__(self, stream: IterableDataset[object]) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[object]:
        while True:
            has_samples = False
            for sample in self.stream:
                has_samples = True
                yield sample
            if not has_samples:
                return
