"""Inside a measuring child: times micro-batches of rising size. Named by the parent, never called by it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sized
from statistics import fmean
from typing import Final

import torch
from torch.utils.data import DataLoader, IterableDataset

from batchcal.calibration.speed import StepTime
from batchcal.core.errors import UserCodeError
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.children.probe import LapRequest
from batchcal.measure.inside.subject import Subject, limit_accelerator, warm_up_for
from batchcal.measure.race.job import LapArguments
from batchcal.measure.race.noise import Foreign, disturbed
from batchcal.measure.race.race import Race
from batchcal.measure.race.stopwatch import GroupTime, timed_group
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.loader import DataLoaderConfig, build_loader
from batchcal.workload.batches import WorstCase
from batchcal.workload.task import Task

STEPS_DROPPED: Final = 1
"""Of every size: the first step can take twelve times the others."""
LEAST_STEPS: Final = 2
LEAST_S: Final = 0.3
"""The first size of a lap is timed for so long; the others over the same samples."""
REPEATS: Final = 2
"""Of a size that was timed while others took our processors: bursts come and go."""
SLOWING: Final = 0.97
"""Two sizes in a row that are this much slower than the best so far end the lap: it gets no better further on."""


def lap(arguments: LapArguments, context: ChildContext) -> JSON:
    """Tells each size as it ends: what comes after it may not live to."""
    setting, request = arguments.setting, arguments.request
    context.phase("load")
    subject = Subject.load(setting)
    limit_accelerator(subject.device, request.allowed_bytes)
    context.phase("read")
    worst = WorstCase.of(subject.task, "train", limit_s=0.2, seed=setting.seed, order=arguments.order)
    warm_up_for(subject, worst, setting, context, *request.micro_batches)
    clock = _Clock(subject, arguments, context)
    if request.rounds:
        _in_rounds(clock, request)
        return {"done": True}
    fastest, best, slower = 0, 0.0, 0
    for size in request.micro_batches:
        rate = clock.tell(size)
        if rate > best:
            fastest, best = size, rate
        slower = slower + 1 if rate < best * SLOWING else 0
        if slower > 1:
            break
    if len(request.micro_batches) > 1 and fastest:
        clock.tell(fastest)  # once more, some time later: what else runs comes and goes
    return {"done": True}


def _in_rounds(clock: _Clock, request: LapRequest) -> None:
    """Every size with every number of threads, against each other. What somebody else was in the way of is told and does not
    count: two such turns would look like a loser."""
    entries = [(size, threads) for size in request.micro_batches for threads in clock.threads]
    for size, threads in entries:
        clock.warm_up(size, threads)
    race = Race(len(entries))
    while not (race.over or clock.is_over()) and race.rounds < request.rounds:
        told: dict[int, float] = {}
        for place in race.order():
            if clock.is_over():
                break
            timed = clock.turn(*entries[place])
            if not disturbed(timed.foreign_share):
                told[place] = 1 / timed.samples_per_s(request.micro_batches[-1])
        if told:
            race.tell(told)


class _Clock:
    """Times every size over the same samples, from the first of the shuffled order on: batches differ in what they hold, and a
    long text makes all of its batch long."""

    def __init__(self, subject: Subject, arguments: LapArguments, context: ChildContext) -> None:
        self._subject, self._request, self._context = subject, arguments.request, context
        self._setting = arguments.setting
        self._samples = self._request.samples
        self._until_s = time.monotonic() + self._request.limit_s
        self._told = False

    def tell(self, size: int) -> float:
        """Times `size` with each number of threads, as long as there is time; samples/s of the best."""
        rate = 0.0
        for threads in self.threads:
            if self._told and self.is_over():
                break
            torch.set_num_threads(threads)
            timed = self._tell(self._timed(size, threads))
            rate = max(rate, timed.samples_per_s(self._request.micro_batches[-1]))
        return rate

    @property
    def threads(self) -> tuple[int, ...]:
        """To time each size with."""
        return self._request.threads or (self._setting.intra_op_threads,)

    def is_over(self) -> bool:
        """Whether the time is."""
        return time.monotonic() >= self._until_s

    def warm_up(self, size: int, threads: int) -> None:
        """One step that is not timed."""
        torch.set_num_threads(threads)
        for _ in range(STEPS_DROPPED):
            timed_group(self._subject, self._batches(size), 1)

    def turn(self, size: int, threads: int) -> StepTime:
        """One time of several; a step at least."""
        torch.set_num_threads(threads)
        return self._tell(self._once(size, threads, least_steps=1))

    def _tell(self, timed: StepTime) -> StepTime:
        self._context.tell({"time": timed.model_dump(mode="json")})
        self._told = True
        self._samples = self._samples or timed.steps * timed.micro_batch
        return timed

    def _timed(self, size: int, threads: int) -> StepTime:
        """Once, and again where somebody else was in the way."""
        self.warm_up(size, threads)
        found = self._once(size, threads)
        for _ in range(REPEATS):
            if not disturbed(found.foreign_share) or self.is_over():
                break
            found = found.or_better(self._once(size, threads))
        return found

    def _once(self, size: int, threads: int, *, least_steps: int = LEAST_STEPS) -> StepTime:
        """The mean: the quickest step would be the lightest batch."""
        batches, foreign = self._batches(size), Foreign()
        groups: list[GroupTime] = []
        while len(groups) < least_steps or not self._enough(groups):
            groups.append(timed_group(self._subject, batches, 1))
        return StepTime(
            micro_batch=size,
            threads=threads,
            step_s=max(fmean(group.step_s[0] for group in groups), 1e-9),
            fetch_s=fmean(group.fetch_s[0] for group in groups),
            fetch_cpu_s=fmean(group.fetch_cpu_s[0] for group in groups),
            update_s=fmean(group.update_s for group in groups),
            steps=len(groups),
            foreign_share=foreign.share(),
        )

    def _batches(self, size: int) -> Iterator[MicroBatch]:
        return training_batches(self._subject, (size,), DataLoaderConfig(), self._setting.seed)

    def _enough(self, groups: list[GroupTime]) -> bool:
        if self._samples is not None:
            return sum(group.samples for group in groups) >= self._samples
        return sum(group.step_s[0] for group in groups) >= LEAST_S


def training_batches(
    subject: Subject, micro_batches: tuple[int, ...], config: DataLoaderConfig, seed: int
) -> Iterator[MicroBatch]:
    """Micro-batches of these sizes in turn, in the shuffled order of a training, epoch after epoch. What an epoch has too few
    samples for is left out. Workers start now: before this process reads a sample, as in a training, where they do not share what
    a dataset opens on its first read."""
    task = subject.task
    whole = not isinstance(task.train_data, IterableDataset)  # where a stream ends is known when it has ended
    if whole and isinstance(task.train_data, Sized):
        micro_batches = _within(len(task.train_data), micro_batches)
    loader = build_loader(config, task.train_data, micro_batches, task.collate_fn, shuffle=True, seed=seed, drop_last=whole)
    begun = iter(loader) if config.num_workers else None
    return _epochs(task, loader, micro_batches, begun)


def _epochs(
    task: Task, loader: DataLoader[object], micro_batches: tuple[int, ...], begun: Iterator[object] | None
) -> Iterator[MicroBatch]:
    for epoch in itertools.count():
        # Not a loop: its name would keep a batch alive while the next one is made.
        batches = map(_counted, loader if epoch or begun is None else begun, itertools.cycle(micro_batches))
        first = list(itertools.islice(batches, 1))
        if not first:
            raise UserCodeError(
                "the data brought no batch when it was read again",
                known=f"iter({type(task.train_data).__name__}) has to begin anew for every epoch",
                try_="def __iter__(self): return iter(...), a new one each time",
            )
        yield first.pop()
        yield from batches


def _within(samples: int, micro_batches: tuple[int, ...]) -> tuple[int, ...]:
    """The first that `samples` are enough for, one at least."""
    sums = list(itertools.accumulate(micro_batches))
    return micro_batches[: max(1, sum(total <= samples for total in sums))]


def _counted(batch: object, samples: int) -> MicroBatch:
    return batch if isinstance(batch, MicroBatch) else MicroBatch(batch, samples)
