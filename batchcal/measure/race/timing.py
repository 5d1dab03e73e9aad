"""Code of a measuring child: times micro-batches of increasing size. The parent refers to it by name and does not call it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sized
from statistics import fmean
from typing import Final

import torch
from torch.utils.data import DataLoader, IterableDataset

from batchcal.calibration.records.speed import StepTime
from batchcal.core.errors import UserCodeError
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.children.probe import TimingRequest
from batchcal.measure.inside.subject import Subject, limit_accelerator, warm_up_for
from batchcal.measure.race.noise import Foreign, disturbed
from batchcal.measure.race.race import Race
from batchcal.measure.race.stopwatch import GroupTime, timed_group
from batchcal.measure.race.timing_job import TimingArguments
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.loader import DataLoaderConfig, build_loader
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.task import Task

STEPS_DROPPED: Final = 1
"""Steps of every size that are not timed: the first step can take twelve times as long as the others."""
LEAST_STEPS: Final = 2
"""Number of timed steps of every size, unless one takes as long as the first size is timed."""
LEAST_S: Final = 0.3
"""Seconds for which the first size is timed. The other sizes are timed over the same samples."""
REPEATS: Final = 2
"""Repetitions for a size that was timed while others used our processors: bursts come and go."""
SLOWING: Final = 0.97
"""Share of the best rate so far. Two sizes in a row below it end the timing: larger ones get no better."""


def time_sizes(arguments: TimingArguments, context: ChildContext) -> JSON:
    """Time the sizes. Report each size when it ends: the process may not live to the end of the next."""
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
    best, slower = 0.0, 0
    for size in request.micro_batches:
        rate = clock.time_size(size)
        best = max(best, rate)
        slower = slower + 1 if rate < best * SLOWING else 0
        if slower > 1 and not request.complete:
            break
    return {"done": True}


def _in_rounds(clock: _Clock, request: TimingRequest) -> None:
    """Race every size with every number of threads, at least one round. A turn that others disturbed is reported and does not
    count: two such turns would look like a loser."""
    entries = [(size, threads) for size in request.micro_batches for threads in clock.threads]
    for size, threads in entries:
        clock.warm_up(size, threads)
    race, is_first = Race(len(entries)), True
    while is_first or not (race.over or clock.is_over() or race.rounds >= request.rounds):
        seconds_by_place: dict[int, float] = {}
        for place in race.order():
            if clock.is_over() and not is_first:
                break
            timed = clock.turn(*entries[place])
            if not disturbed(timed.foreign_share):
                seconds_by_place[place] = 1 / timed.samples_per_s(request.micro_batches[-1])
        if seconds_by_place:
            race.record(seconds_by_place)
        is_first = False


class _Clock:
    """Times every size over the same samples, from the first of the shuffled order on: batches differ in their content, and one
    long text makes its complete batch long."""

    def __init__(self, subject: Subject, arguments: TimingArguments, context: ChildContext) -> None:
        self._subject, self._request, self._context = subject, arguments.request, context
        self._setting = arguments.setting
        self._samples = self._request.samples
        self._until_s = time.monotonic() + self._request.limit_s
        self._has_reported = False

    def time_size(self, size: int) -> float:
        """Time `size` with each number of threads, while there is time. Return the best samples/s."""
        rate = 0.0
        for threads in self.threads:
            if self._has_reported and self.is_over():
                break
            torch.set_num_threads(threads)
            timed = self._report(self._timed(size, threads))
            rate = max(rate, timed.samples_per_s(self._request.micro_batches[-1]))
        return rate

    @property
    def threads(self) -> tuple[int, ...]:
        """Numbers of threads to time each size with."""
        return self._request.threads or (self._setting.intra_op_threads,)

    def is_over(self) -> bool:
        """Return True if the time is over."""
        return time.monotonic() >= self._until_s

    def warm_up(self, size: int, threads: int) -> None:
        """Run a step that is not timed."""
        torch.set_num_threads(threads)
        for _ in range(STEPS_DROPPED):
            timed_group(self._subject, self._batches(size), 1)

    def turn(self, size: int, threads: int) -> StepTime:
        """Time one turn of several, at least one step."""
        torch.set_num_threads(threads)
        return self._report(self._once(size, threads, least_steps=1))

    def _report(self, timed: StepTime) -> StepTime:
        self._context.send({"time": timed.model_dump(mode="json")})
        self._has_reported = True
        self._samples = self._samples or timed.steps * timed.micro_batch
        return timed

    def _timed(self, size: int, threads: int) -> StepTime:
        """Time once, and again if others disturbed it."""
        self.warm_up(size, threads)
        best = self._once(size, threads)
        for _ in range(REPEATS):
            if not disturbed(best.foreign_share) or self.is_over():
                break
            best = best.or_better(self._once(size, threads))
        return best

    def _once(self, size: int, threads: int, *, least_steps: int = LEAST_STEPS) -> StepTime:
        """Return the mean: the fastest step would be that of the lightest batch."""
        batches, foreign = self._batches(size), Foreign()
        groups: list[GroupTime] = []
        while not self._enough(groups, least_steps):
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

    def _enough(self, groups: list[GroupTime], least_steps: int) -> bool:
        spent_s = sum(group.step_s[0] for group in groups)
        if len(groups) < least_steps and spent_s < LEAST_S:
            return False
        if self._samples is None:
            return spent_s >= LEAST_S
        # To the nearest number of steps.
        return sum(group.samples for group in groups) + groups[-1].samples / 2 > self._samples


def training_batches(
    subject: Subject, micro_batches: tuple[int, ...], config: DataLoaderConfig, seed: int
) -> Iterator[MicroBatch]:
    """Return micro-batches of these sizes, one after another, in the shuffled order of a training, epoch after epoch.
    Micro-batches for which an epoch has too few samples are left out. Workers start now, before this process reads a sample. As
    in a training, they then do not share the files that a dataset opens on its first read."""
    task = subject.task
    finite = not isinstance(task.train_data, IterableDataset)  # the end of a stream is unknown until it is reached
    if finite and isinstance(task.train_data, Sized):
        micro_batches = _within(len(task.train_data), micro_batches)
    loader = build_loader(config, task.train_data, micro_batches, task.collate_fn, shuffle=True, seed=seed, drop_last=finite)
    first_epoch = iter(loader) if config.num_workers else None
    return _epochs(task, loader, micro_batches, first_epoch)


def _epochs(
    task: Task, loader: DataLoader[object], micro_batches: tuple[int, ...], first_epoch: Iterator[object] | None
) -> Iterator[MicroBatch]:
    for epoch in itertools.count():
        # Not a loop: its variable would keep a batch alive while the next one is made.
        batches = map(_counted, loader if epoch or first_epoch is None else first_epoch, itertools.cycle(micro_batches))
        first = list(itertools.islice(batches, 1))
        if not first:
            raise UserCodeError(
                "the training data delivered no batch when it was read again",
                known=f"iter({type(task.train_data).__name__}) must start again in every epoch",
                try_="return a new iterator each time: def __iter__(self): return iter(...)",
            )
        yield first.pop()
        yield from batches


def _within(samples: int, micro_batches: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first ones for which `samples` are enough, at least one."""
    sums = list(itertools.accumulate(micro_batches))
    return micro_batches[: max(1, sum(total <= samples for total in sums))]


def _counted(batch: object, samples: int) -> MicroBatch:
    return batch if isinstance(batch, MicroBatch) else MicroBatch(batch, samples)
