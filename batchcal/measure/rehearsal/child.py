"""Code of a measuring child: runs a plan as it will train. The parent refers to it by name and does not call it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.report import describe
from batchcal.guard.job import ChildContext
from batchcal.machine.peak_meter import AcceleratorPeak, HostPeak
from batchcal.measure.children.probe import RehearsalRequest
from batchcal.measure.inside.peak import WorkersPeak, child_memory
from batchcal.measure.inside.subject import Subject, limit_accelerator, warm_up_for
from batchcal.measure.race.noise import Foreign, disturbed
from batchcal.measure.race.stopwatch import GroupTime, timed_group
from batchcal.measure.race.timing import REPEATS, training_batches
from batchcal.measure.rehearsal.job import RehearsalAnswer, RehearsalArguments
from batchcal.plan.plan import Plan
from batchcal.runtime.batches import MicroBatch
from batchcal.runtime.group import run_group
from batchcal.runtime.loader import DataLoaderConfig
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.model.optimizers import set_mode

WORST_GROUPS: Final = 2
WORST_MICRO_BATCHES: Final = 2
"""Micro-batches of each group. The second runs beside the gradients of the first, and later ones need no more."""
EVALUATIONS: Final = 2
SCAN_LIMIT_S: Final = 0.5


def rehearse(arguments: RehearsalArguments, context: ChildContext) -> JSON:
    """Run groups of the largest samples, ordinary groups, evaluations, and a group after them."""
    setting, request = arguments.setting, arguments.request
    context.phase("load")
    subject = Subject.load(setting)
    context.phase("read")
    workers = WorkersPeak()
    started_s = time.monotonic()
    batches = training_batches(subject, request.micro_batches, DataLoaderConfig.of(request.plan), setting.seed)
    worst = WorstCase.of(subject.task, "train", limit_s=SCAN_LIMIT_S, seed=setting.seed, order=arguments.order)
    accelerator = AcceleratorPeak(subject.device, setting.accelerator_free_bytes)
    limit_accelerator(subject.device, request.allowed_bytes)
    host = HostPeak()
    load_peak = host.read()
    warm_up_for(subject, worst, setting, context, request.plan.micro_batch)
    until_s = time.monotonic() + request.limit_s
    host.reset()
    accelerator.reset()
    begin = host.read()
    if request.worst_case:
        for _ in range(WORST_GROUPS):
            _largest(subject, worst, request)
    count = len(request.micro_batches)
    timing = _settled(subject, batches, request, workers, started_s=started_s, until_s=until_s)
    training_bytes = host.read() + (workers.read() if request.plan.num_workers else 0)
    train_peak = training_bytes if subject.device.type == "cpu" else accelerator.reserved_bytes() or 0
    if request.eval_batches:
        context.send({"evaluating": True})  # the process may not live to report it later
    eval_sample_s = _evaluations(subject, arguments)
    if request.eval_batches:
        timed_group(subject, batches, count)
    last_group_error = _last_group(subject, worst, request.plan) if request.worst_case else ""
    workers_bytes = workers.read() if request.plan.num_workers else 0
    context.phase("finish")
    answer = RehearsalAnswer(
        held=child_memory(host, accelerator, load_peak=load_peak, begin=begin, workers=workers_bytes),
        train_peak_bytes=train_peak,
        groups=timing.groups,
        sample_s=timing.step_s / timing.samples,
        wait_s=timing.fetch_s / timing.samples,
        update_s=timing.update_s / timing.groups,
        eval_sample_s=eval_sample_s,
        foreign_share=timing.foreign_share,
        last_group_error=last_group_error,
    )
    return answer.model_dump(mode="json")


@dataclass
class _Timing:
    """Sums over the timed groups."""

    groups: int = 0
    samples: int = 0
    step_s: float = 0.0
    fetch_s: float = 0.0
    update_s: float = 0.0
    foreign_share: float | None = None

    @property
    def spent_s(self) -> float:
        return self.step_s + self.update_s

    def add(self, group: GroupTime) -> None:
        self.groups += 1
        self.samples += group.samples
        self.step_s += sum(group.step_s)
        self.fetch_s += sum(group.fetch_s)
        self.update_s += group.update_s


def _settled(
    subject: Subject,
    batches: Iterator[MicroBatch],
    request: RehearsalRequest,
    workers: WorkersPeak,
    *,
    started_s: float,
    until_s: float,
) -> _Timing:
    """Time the groups after workers have settled at their own speed. Repeat if others disturbed the measurement."""
    # Batches that workers have read ahead by then arrive faster than that.
    dropped = 1 + request.plan.num_workers * (request.plan.prefetch_factor or 0)
    first, passed = _Timing(), 0
    while passed < dropped or (request.plan.num_workers and time.monotonic() >= until_s):
        if passed and time.monotonic() >= until_s:
            # Only batches that were read ahead, or that another worker fetched meanwhile, could be timed now. The rate since the
            # start of the workers is the least that they achieve.
            workers.update()
            waited = time.monotonic() - started_s - first.spent_s if request.plan.num_workers else 0.0
            first.step_s, first.fetch_s = first.step_s + max(0.0, waited), first.fetch_s + max(0.0, waited)
            return first
        group = timed_group(subject, batches, len(request.micro_batches))
        first.add(group)
        passed += len(group.step_s)
    timing = _timed(subject, batches, request, workers, until_s)
    for _ in range(REPEATS):
        if not disturbed(timing.foreign_share) or time.monotonic() >= until_s:
            break
        timing = min(timing, _timed(subject, batches, request, workers, until_s), key=lambda timed: timed.spent_s / timed.samples)
    return timing


def _timed(
    subject: Subject, batches: Iterator[MicroBatch], request: RehearsalRequest, workers: WorkersPeak, until_s: float
) -> _Timing:
    """Time one group, and more for the requested seconds."""
    timing, foreign = _Timing(), Foreign()
    while timing.groups == 0 or (timing.spent_s < request.least_s and time.monotonic() < until_s):
        timing.add(timed_group(subject, batches, len(request.micro_batches)))
        workers.update()
    timing.foreign_share = foreign.share()
    return timing


def _largest(subject: Subject, worst: WorstCase, request: RehearsalRequest) -> None:
    """Run one optimizer step on the largest samples."""
    sizes = request.micro_batches[:WORST_MICRO_BATCHES]
    group = (MicroBatch(worst.batch(size), size) for size in sizes)
    run_group(subject.task, group, device=subject.device, scaler=subject.scaler, clear_first=True)


def _last_group(subject: Subject, worst: WorstCase, plan: Plan) -> str:
    """Run the last, smaller group of an epoch. An error of the task's own code is a result: the other groups ran well."""
    if not plan.last_group or plan.last_group_error:
        return ""
    group = (MicroBatch(worst.batch(size), size) for size in plan.last_group)
    try:
        run_group(subject.task, group, device=subject.device, scaler=subject.scaler, clear_first=True)
    except Exception as error:
        raised = describe(error, "measure")
        if memory_error(raised) is not None:
            raise
        return raised.headline
    return ""


def _evaluations(subject: Subject, arguments: RehearsalArguments) -> tuple[float, ...]:
    """Return the seconds per sample of each evaluation. Empty for a task that cannot be evaluated and that a training does not
    evaluate: the loss of a physics-informed network, or a gradient penalty, computes its own gradients."""
    try:
        return tuple(_evaluated(subject, size, arguments) for size in arguments.request.eval_batches)
    except Exception as error:
        if subject.task.eval_data is not None or memory_error(describe(error, "measure")) is not None:
            raise
    set_mode(subject.task, training=True)
    return ()


def _evaluated(subject: Subject, size: int, arguments: RehearsalArguments) -> float:
    """Return the seconds per sample of the last of some evaluations."""
    worst = WorstCase.of(subject.task, "eval", limit_s=SCAN_LIMIT_S, seed=arguments.setting.seed, order=arguments.eval_order)
    set_mode(subject.task, training=False)
    seconds = 0.0
    for _ in range(EVALUATIONS):
        start_s = time.perf_counter()
        subject.step(worst.batch(size), size, "eval", None)
        seconds = time.perf_counter() - start_s
    set_mode(subject.task, training=True)
    return seconds / size
