"""Inside a measuring child: times micro-batches of rising size. Named by the parent, never called by it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Final

from torch.utils.data import IterableDataset

from batchcal.calibration.speed import StepTime
from batchcal.guard.job import ChildContext
from batchcal.guard.wire import JSON
from batchcal.measure.race.request import LapArguments
from batchcal.measure.subject import Subject
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.loader import DataLoaderConfig, build_loader
from batchcal.workload.batches import WorstCase
from batchcal.workload.step import batch_weight, clear_gradients, forward_backward, move, update

STEPS_DROPPED: Final = 1
"""Of every size: the first step can take twelve times the others."""
LEAST_STEPS: Final = 2
SLOWING: Final = 0.85
"""Two sizes in a row that are this much slower than the best so far end the lap: it gets no better further on."""


def lap(arguments: dict[str, JSON], context: ChildContext) -> JSON:
    """Tells each size as it ends: what comes after it may not live to."""
    request = LapArguments.model_validate(arguments)
    setting = request.setting
    context.phase("load")
    subject = Subject.load(setting)
    worst = WorstCase.of(subject.task, "train", limit_s=0.2, seed=setting.seed, order=request.order)
    context.phase("warm-up")
    smallest = min(setting.smallest_batch, *request.micro_batches)
    subject.warm_up(worst.batch(smallest), smallest)
    context.arm()
    context.phase("measure")
    best, slower = 0.0, 0
    for size in request.micro_batches:
        if time.monotonic() >= request.until_s:
            break
        timed = _timed(subject, size, request)
        context.tell({"time": timed.model_dump(mode="json")})
        rate = timed.samples_per_s(request.micro_batches[-1])
        best, slower = max(best, rate), slower + 1 if rate < best * SLOWING else 0
        if slower > 1:
            break
    return {"done": True}


def _timed(subject: Subject, size: int, request: LapArguments) -> StepTime:
    step_s: list[float] = []
    update_s: list[float] = []
    batches = _batches(subject, size, request.setting.seed)
    for number in itertools.count():
        began = time.perf_counter()
        batch = next(batches)
        weight = _forward_backward(subject, batch)
        ended = time.perf_counter()
        update(subject.task, weight, scaler=subject.scaler)
        if number >= STEPS_DROPPED:
            step_s.append(ended - began)
            update_s.append(time.perf_counter() - ended)
        clear_gradients(subject.task)
        if len(step_s) >= LEAST_STEPS and sum(step_s) >= request.least_s:
            break
    return StepTime(micro_batch=size, step_s=min(step_s), update_s=max(min(update_s), 1e-9), steps=len(step_s))


def _forward_backward(subject: Subject, micro_batch: MicroBatch) -> float:
    batch = move(micro_batch.batch, subject.device)
    weight = batch_weight(subject.task, batch, micro_batch.samples)
    forward_backward(subject.task, batch, weight=weight, scaler=subject.scaler)
    return weight


def _batches(subject: Subject, size: int, seed: int) -> Iterator[MicroBatch]:
    """Whole micro-batches in the shuffled order of a training, epoch after epoch."""
    task = subject.task
    whole = not isinstance(task.train_data, IterableDataset)  # where a stream ends is known when it has ended
    loader = build_loader(DataLoaderConfig(), task.train_data, (size,), task.collate_fn, shuffle=True, seed=seed, drop_last=whole)
    for _ in itertools.count():
        for batch in loader:
            yield batch if isinstance(batch, MicroBatch) else MicroBatch(batch, size)
