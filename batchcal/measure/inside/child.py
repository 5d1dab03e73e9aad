"""Code of a measuring child: examines a task, or runs its step at one batch size. The parent does not call it, only names it."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.schema import Mode
from batchcal.core.units import format_bytes
from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.report import describe
from batchcal.guard.job import ChildContext
from batchcal.machine.meters import ProcessMemory, read_status
from batchcal.machine.peak_meter import AcceleratorPeak, HostPeak
from batchcal.measure.children.examine_job import ExamineArguments
from batchcal.measure.children.probe import Examination, ProbeRequest
from batchcal.measure.children.probe_job import ProbeAnswer, ProbeArguments
from batchcal.measure.children.setting import SMALLEST, ChildSetting
from batchcal.measure.heap.handles import FreedBlocks, heap_keeps_blocks, hold_blocks
from batchcal.measure.inside.first_steps import first_steps
from batchcal.measure.inside.loader import same_batch
from batchcal.measure.inside.peak import WorkersPeak, child_memory
from batchcal.measure.inside.static import PROFILED_BATCHES, FakeTrace, line, profiled_curve
from batchcal.measure.inside.subject import Subject, limit_accelerator, warm_up_for
from batchcal.measure.search.settling import STILL, stands_still
from batchcal.measure.workers.kept_memory import kept_by_reading
from batchcal.runtime.batches import MicroBatch
from batchcal.workload.data.streams import length_of
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.facts import TaskFacts
from batchcal.workload.model.optimizers import set_mode
from batchcal.workload.task import Task

SCAN_LIMIT_S: Final = 2.0
"""Limit of the search for the largest samples, seconds."""
EVAL_SCAN_LIMIT_S: Final = 1.0
STATIC_BATCHES: Final = (2, 4, 8, 32, 128, 512, 2048)
LEAKING_STEPS: Final = 4
"""If memory grows in each of this many steps in a row, it does not settle."""
RATE_BATCH: Final = 16
SLOW_STEP_S: Final = 0.5
"""Seconds. If a tiny step takes longer, its rate is enough: two steps of a larger batch took 20 s with graphs of 30,000 nodes."""
COLLATE_LIMIT_S: Final = 0.7
"""Maximum expected seconds to collate a batch of the static curve."""
COLLATED_SHARE: Final = 0.3
"""Maximum share of the room for the inputs of such a batch: samples and batch exist at the same time."""
PROFILED_SHARE: Final = 0.6
"""Tiny batches are profiled by running them while they are expected to stay within this share of the room."""


def examine(request: ExamineArguments, context: ChildContext) -> JSON:
    """Load the task, run three tiny steps, and compute the static curves. If the rest is known, run only the tiny steps."""
    context.phase("load")
    subject = Subject.load(request.setting)
    seed, examined = request.setting.seed, request.known
    context.phase("read")
    kept_bytes = kept_by_reading(subject.task.train_data, seed) if examined is None else 0.0
    if kept_bytes:
        context.send({"kept_bytes_per_sample": kept_bytes, "train_samples": length_of(subject.task.train_data)})
    worst = WorstCase.of(subject.task, "train", limit_s=SCAN_LIMIT_S, seed=seed, order=request.order)
    worst.spare()
    facts = (
        worst.facts(subject.task).model_copy(update={"kept_bytes_per_sample": kept_bytes}) if examined is None else examined.facts
    )
    context.phase("warm-up")
    host, accelerator = HostPeak(), AcceleratorPeak(subject.device, request.setting.accelerator_free_bytes)
    smallest = request.setting.smallest_batch
    loaded = accelerator.reserved_bytes() or (read_status() or ProcessMemory()).hard_bytes
    steps = first_steps(subject, worst, smallest, one_size=request.setting.one_size)
    subject.train(worst.batch(smallest), smallest)
    host.reset()
    accelerator.reset()
    start_s = time.perf_counter()
    subject.train(worst.batch(smallest), smallest, MicroBatch(worst.batch(smallest), smallest))
    tiny_s = (time.perf_counter() - start_s) / 2
    base_bytes, base_accelerator = host.read(), accelerator.reserved_bytes()
    base = base_bytes if base_accelerator is None else base_accelerator
    # The task runs. From here on the measurement itself may fail: an end in this phase does not count against the task.
    context.phase("measure")
    if tiny_s > SLOW_STEP_S:
        rate = smallest / max(tiny_s, smallest * worst.sample_s)
    else:
        rate = _rate(subject, worst, _rate_batch(request, facts, loaded, base), smallest)
    if examined is not None:
        tiny = {"base_bytes": base_bytes, "base_accelerator_bytes": base_accelerator, "samples_per_s": rate}
        return {"examination": examined.model_copy(update=tiny).model_dump(mode="json")}
    refused = () if tiny_s > SLOW_STEP_S else _refused(subject, worst, request, facts)
    eval_order = worst.order
    if subject.task.eval_data is not None:
        eval_worst = WorstCase.of(subject.task, "eval", limit_s=EVAL_SCAN_LIMIT_S, seed=seed)
        eval_order = eval_worst.order
        facts = facts.model_copy(update={"unseen_factor": max(facts.unseen_factor, eval_worst.factor)})
    context.send({"timed": True})  # what follows uses one core
    shapes, source, notes = _shapes(subject.task, worst, request, facts, base)
    examination = Examination(
        facts=facts,
        base_bytes=base_bytes,
        base_accelerator_bytes=base_accelerator,
        shapes=shapes,
        samples_per_s=rate,
        shape_source=source,
        shapes_change=worst.shapes_change(smallest, random.Random(seed)),
        refused=refused,
        notes=(*steps.notes(), *notes),
    )
    return {"examination": examination.model_dump(mode="json"), "train": list(worst.order), "eval": list(eval_order)}


def probe(arguments: ProbeArguments, context: ChildContext) -> JSON:
    """Warm up on a tiny batch, have the fence armed, then run steps at the requested size until the peak stops growing."""
    setting, request = arguments.setting, arguments.request
    context.phase("load")
    subject = Subject.load(setting)
    context.phase("read")
    worst = WorstCase.of(subject.task, request.mode, limit_s=SCAN_LIMIT_S, seed=setting.seed, order=arguments.order)
    workers = WorkersPeak()
    # Workers start before this process reads a sample, as in a training: files opened on the first read are not shared.
    batches = same_batch(worst, setting, worst.indices(request.batch), request.samples)
    train_worst = worst
    if request.mode == "eval":
        train_worst = WorstCase.of(subject.task, "train", limit_s=0.2, seed=setting.seed, order=arguments.train_order)
    accelerator = AcceleratorPeak(subject.device, setting.accelerator_free_bytes)
    limit_accelerator(subject.device, request.allowed_bytes)
    host = HostPeak()
    load_peak = host.read()
    smallest = warm_up_for(subject, train_worst, setting, context, request.batch)
    host.reset()
    accelerator.reset()
    if request.mode == "eval" and request.train_batch is not None:
        for _ in range(request.train_steps):
            subject.train(train_worst.batch(request.train_batch), request.train_batch)
        host.reset()  # memory that training leaves behind stays resident; only what evaluation needs beyond it is measured
        accelerator.reset()
    begin = host.read()
    tiny = None if setting.one_size else MicroBatch(train_worst.batch(smallest), smallest)
    step_s, peaks, workers_bytes = _steps(subject, batches, arguments, host, workers, tiny=tiny)
    answer = ProbeAnswer(
        held=child_memory(host, accelerator, load_peak=load_peak, begin=begin, workers=workers_bytes),
        step_s=tuple(step_s),
        notes=_growing(peaks, request),
    )
    if request.evaluation_steps:
        context.send({"trained": answer.model_dump(mode="json")})  # the evaluation may end the process
        host.reset()
        accelerator.reset()
        begin = host.read()
        evaluation = arguments.model_copy(update={"request": request.evaluation()})
        worst = WorstCase.of(subject.task, "eval", limit_s=EVAL_SCAN_LIMIT_S, seed=setting.seed, order=arguments.eval_order)
        batches = same_batch(worst, setting, worst.indices(request.batch), request.samples)
        step_s, _, _ = _steps(subject, batches, evaluation, host, workers, tiny=None)
        held = child_memory(host, accelerator, load_peak=load_peak, begin=begin, workers=0)
        answer = answer.model_copy(update={"evaluation": ProbeAnswer(held=held, step_s=tuple(step_s))})
    context.phase("finish")
    return answer.model_dump(mode="json")


class NotTraced(Exception):
    """The model must not be run without memory."""


def _rate_batch(request: ExamineArguments, facts: TaskFacts, loaded_bytes: int, base_bytes: int) -> int:
    """Return RATE_BATCH, or as many as surely fit: a tiny step's memory beyond the loaded task bounds that of its samples."""
    smallest = request.setting.smallest_batch
    if request.curve == "assumed":
        return smallest
    bytes_per_sample = max(1.0, (base_bytes - loaded_bytes) / smallest)
    fitting = int((request.budget_bytes - base_bytes) * PROFILED_SHARE / bytes_per_sample)
    size = min(RATE_BATCH, facts.train_samples or RATE_BATCH, fitting)
    return smallest if request.setting.one_size else max(smallest, size - size % request.setting.multiple_of)


def _refused(subject: Subject, worst: WorstCase, request: ExamineArguments, facts: TaskFacts) -> tuple[int, ...]:
    """Return the size above the tiny one if the user's code fails at it. Trials in new processes decide if it is trusted."""
    setting = request.setting
    size = setting.smallest_batch + 1
    usual = setting.multiple_of == 1 and not setting.one_size and setting.smallest_batch == SMALLEST
    if not usual or request.curve != "traced" or size > (facts.train_samples or size):
        return ()
    try:
        subject.train(worst.batch(size), size)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        subject.task.optimizer.zero_grad(set_to_none=True)
        return () if memory_error(describe(error, "measure")) is not None else (size,)
    return ()


def _rate(subject: Subject, worst: WorstCase, size: int, smallest: int) -> float:
    """Return samples per second of the second of two small steps, with `smallest` samples if the task refuses `size`."""
    step_s = 0.0
    try:
        for _ in range(2):
            start_s = time.perf_counter()
            subject.train(worst.batch(size), size)
            step_s = time.perf_counter() - start_s
        step_s = max(step_s, size * worst.sample_s)  # a spared sample is loaded once; a training loads it each time
    except Exception:
        if size == smallest:
            raise
        subject.task.optimizer.zero_grad(set_to_none=True)
        return _rate(subject, worst, smallest, smallest)
    return size / max(step_s, 1e-6)


def _steps(
    subject: Subject,
    batches: Iterator[object],
    arguments: ProbeArguments,
    host: HostPeak,
    workers: WorkersPeak,
    *,
    tiny: MicroBatch | None,
) -> tuple[list[float], list[int], int]:
    """Run at most `samples` steps. Return the seconds of each, the peak after each, and the memory of the workers, bytes."""
    setting, request = arguments.setting, arguments.request
    step_s: list[float] = []
    peaks: list[int] = []
    workers_bytes = 0
    set_mode(subject.task, training=request.mode == "train")
    freed = FreedBlocks() if setting.workers and heap_keeps_blocks() else None
    held_blocks: mmap.mmap | None = None
    start_s = time.perf_counter()
    # The batch stays alive while the next one is collated, as in every training loop.
    for batch in batches:
        # One step holds the gradients of a tiny micro-batch, as in accumulation. The others have one micro-batch: its gradients
        # lie among the activations, which fragments more with glibc (826-876 MiB against 824-1006, small CNN).
        accumulates = len(peaks) == min(1, request.samples - 1)
        before = tiny or MicroBatch(batch, request.batch)
        with (freed if freed is not None and not peaks else None) or contextlib.nullcontext():
            subject.step(batch, request.batch, request.mode, before if accumulates else None)
        end_s = time.perf_counter()
        if freed is not None and held_blocks is None:
            held_blocks = hold_blocks(batch, freed.largest, lost=setting.lost_blocks)
        step_s.append(end_s - start_s)
        peaks.append(host.read())
        workers.update()
        if stands_still(peaks, least=request.least_steps) or len(peaks) == request.samples:
            workers_bytes = workers.read() if setting.workers else 0  # now: workers end when the loop releases the loader
            break
        start_s = time.perf_counter()
    del held_blocks
    return step_s, peaks, workers_bytes


def _growing(peaks: list[int], request: ProbeRequest) -> tuple[str, ...]:
    """Return a note if memory grew until the last step, by about as much each time: such a growth fits nowhere."""
    growth = [after - before for before, after in itertools.pairwise(peaks)]
    if len(peaks) < request.samples or len(growth) < LEAKING_STEPS or min(growth[-LEAKING_STEPS:]) < peaks[-1] * STILL:
        return ()
    each = format_bytes(sum(growth[-LEAKING_STEPS:]) // LEAKING_STEPS)
    return (
        f"memory grew in each of {len(peaks)} steps, by {each} per step at the end: possibly a memory leak. "
        "With this growth, a training runs out of memory at any batch size",
    )


def _shapes(
    task: Task, worst: WorstCase, request: ExamineArguments, facts: TaskFacts, base_bytes: int
) -> tuple[dict[Mode, tuple[ShapePoint, ...]], str, tuple[str, ...]]:
    """Return the static curve by mode, its source, and notes."""
    modes: tuple[Mode, ...] = ("train", "eval")
    ceiling = facts.train_samples or 1 << 16
    room = max(0, request.budget_bytes - base_bytes)
    setting = request.setting
    affordable = _affordable_batch(worst, ceiling, facts.batch_bytes_per_sample, room, setting)
    inputs = _Inputs(facts.batch_bytes_per_sample, setting.device)
    notes: list[str] = []
    try:
        if request.curve != "traced":
            raise NotTraced("an earlier process that traced it crashed, hung or ran out of memory")
        trace = FakeTrace(task, worst.batch, limit_s=request.limit_s)
        trace.trace(_sizes(STATIC_BATCHES, setting, min(ceiling, affordable)) or _sizes((1, ceiling), setting, ceiling))
        shapes = inputs.added_to(trace.shapes())
        if "train" in shapes:
            # Then around the size that the budget is expected to hold: it matters there, and a curve may bend.
            cap = _expected_cap(shapes["train"], base_bytes, request.budget_bytes, min(ceiling, affordable))
            trace.trace([size for size in _sizes((cap // 2, cap, cap * 3 // 2), setting, min(ceiling, affordable)) if size > 1])
            return _with_eval(inputs.added_to(trace.shapes())), "fake-tensor", ()
        notes.append("the time was too short to trace the model without allocating memory")
    except Exception as error:  # noqa: BLE001 - whatever a model does under FakeTensor, there is another way
        notes.append(f"the model cannot be traced without allocating memory: {type(error).__name__}: {str(error).strip()[:200]}")
    if request.curve != "assumed":
        fresh = Subject.load(setting).task  # the trace has made the other unusable
        sizes = _sizes(PROFILED_BATCHES, setting, ceiling)
        shapes = profiled_curve(fresh, worst.batch, modes, ceiling=ceiling, sizes=sizes, room_bytes=room * PROFILED_SHARE)
        if "train" in shapes:
            return _with_eval(inputs.added_to(shapes)), "profiler", tuple(notes)
    notes.append("the memory that grows with the batch could not be measured; it is estimated from the size of the batch itself")
    per_sample = max(facts.batch_bytes_per_sample * 4, 1024.0)
    return {"train": line(per_sample), "eval": line(per_sample / 2)}, "batch-bytes", tuple(notes)


@dataclass(frozen=True)
class _Inputs:
    """The batch itself, which no trace of the step includes."""

    bytes_per_sample: float
    device: str

    def added_to(self, shapes: dict[Mode, tuple[ShapePoint, ...]]) -> dict[Mode, tuple[ShapePoint, ...]]:
        """Add the batch to `shapes`. On the host it exists three times while the next one is made: as the last one, the samples
        and the new one (a probe of 64 MiB batches held 193 MiB more). On an accelerator it exists once."""
        copies = 3 if self.device.startswith("cpu") else 1
        return {
            mode: tuple(
                at.model_copy(update={"bytes": max(at.bytes + self._bytes(at.batch), copies * self._bytes(at.batch))})
                for at in points
            )
            for mode, points in shapes.items()
        }

    def _bytes(self, batch: int) -> float:
        return batch * self.bytes_per_sample


def _expected_cap(shape: tuple[ShapePoint, ...], base_bytes: int, budget_bytes: int, ceiling: int) -> int:
    model = MemoryModel(base_bytes=base_bytes, ratio=1.1, shape=shape, source="fake-tensor")
    return model.largest_within(budget_bytes, ceiling=ceiling)


def _with_eval(shapes: dict[Mode, tuple[ShapePoint, ...]]) -> dict[Mode, tuple[ShapePoint, ...]]:
    """Return `shapes` with a curve for evaluation. If it has none of its own, use that of training: an upper bound."""
    return shapes if "eval" in shapes else {**shapes, "eval": shapes["train"]}


def _sizes(batches: Sequence[int], setting: ChildSetting, most: int) -> list[int]:
    """Return `batches` up to `most`, in ascending order, each as the next size that the task takes."""
    multiple, least = setting.multiple_of, setting.smallest_batch if setting.smallest_batch > SMALLEST else 1
    sizes = {max(least, -(-size // multiple) * multiple) for size in batches}
    return sorted(size for size in sizes if size <= most)


def _affordable_batch(worst: WorstCase, ceiling: int, bytes_per_sample: float, room_bytes: int, setting: ChildSetting) -> int:
    """Return the largest batch for the static curve at which collating stays cheap. Its inputs are real."""
    most = max(2, int(room_bytes * COLLATED_SHARE / max(bytes_per_sample, 1.0)))
    size = min(32, ceiling, most)
    if setting.multiple_of > 1 or setting.smallest_batch > SMALLEST:
        size = max(size - size % setting.multiple_of, setting.smallest_batch)
    start_s = time.perf_counter()
    worst.batch(size)
    per_sample_s = max((time.perf_counter() - start_s) / size, 1e-9)
    return min(most, max(8, int(COLLATE_LIMIT_S / per_sample_s)))
