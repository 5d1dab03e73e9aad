"""Code of a measuring child: starts DataLoader workers, compares them with the process and measures them. The parent refers to it
by name and does not call it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sized
from typing import Final

import torch
from torch.utils.data import Dataset, IterableDataset

from batchcal.calibration.records.workers import Start
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.machine.meters import ProcessMemory, read_status
from batchcal.measure.workers.comparison import compare
from batchcal.measure.workers.growth import at_most, kept_per_sample
from batchcal.measure.workers.job import WorkersAnswer, WorkersArguments
from batchcal.measure.workers.reading import COMPARED_BATCH, WorkersRun, read_in_process, read_with_workers
from batchcal.measure.workers.trial import FRESH_WORKER_S, MOST_FRESH_WORKER_S
from batchcal.workload.data.held_resources import find_generator, find_held_resource
from batchcal.workload.data.pickled import Pickled, pickled_bytes
from batchcal.workload.spec.load import load_task
from batchcal.workload.task import Task

SLOW_FACTOR: Final = 8.0
"""Workers that deliver nothing within this multiple of the process's time for one batch hang. Before, they may be slow."""


def examine_workers(request: WorkersArguments, context: ChildContext) -> JSON:
    """Load the task and try workers on its training data."""
    context.phase("load")
    torch.manual_seed(request.seed)
    before = anonymous_bytes()
    start_s = time.monotonic()
    task = load_task(request.reference, device="cpu")
    load_s = time.monotonic() - start_s
    context.phase("measure")
    answer = examine(
        task,
        workers=request.workers,
        seed=request.seed,
        read_s=request.read_s,
        hang_s=request.hang_s,
        fresh_s=min(FRESH_WORKER_S + load_s, MOST_FRESH_WORKER_S),
        anonymous_before=before,
    )
    context.phase("finish")
    return answer.model_dump(mode="json")


def examine(
    task: Task, *, workers: int, seed: int, read_s: float, hang_s: float, anonymous_before: int, fresh_s: float = FRESH_WORKER_S
) -> WorkersAnswer:
    """Try `workers` workers on the training data of `task`, of which no sample was read yet.

    Args:
        anonymous_before: memory of this process before it loaded the task, bytes.
        fresh_s: seconds beside `hang_s` for a worker that is not forked to start: it imports torch and the user's module.
    """
    holding = find_held_resource(task.train_data, task.eval_data, task.collate_fn)
    pickled = pickled_bytes(task.train_data)
    start: Start | None = None
    if holding is not None and multiprocessing.get_start_method() == "fork":
        why_not = _why_not_sent(pickled, task)
        if why_not:
            return WorkersAnswer(holding=str(holding), does_not_pickle=why_not)
        start = "forkserver"
    text = "" if holding is None else str(holding)
    forked = start is None and multiprocessing.get_start_method() == "fork"
    hang_s += 0.0 if forked else fresh_s
    copyable = max(0, anonymous_bytes() - anonymous_before - _tensor_bytes(task) - pickled.array_bytes) if forked else 0
    data = task.train_data
    stream = isinstance(data, IterableDataset)
    samples = len(data) if isinstance(data, Sized) and not stream else None
    run = read_with_workers(data, samples, workers=1 if stream else workers, start=start, seed=seed, read_s=read_s, hang_s=hang_s)
    measured = WorkersAnswer(
        holding=text,
        start=start,
        failed=run.failed,
        error=run.error,
        samples=run.points[-1].samples if run.points else 0,
        private_bytes=run.points[0].held_bytes if run.points else 0,
    )
    if stream or samples is None:
        return measured.model_copy(update={"not_compared": "the dataset is a stream, and its samples have no index"})
    return _compared(
        measured, data, run, workers=workers, samples=samples, seed=seed, read_s=read_s, hang_s=hang_s, copyable=copyable
    )


def _compared(
    answer: WorkersAnswer,
    data: Dataset[object],
    run: WorkersRun,
    *,
    workers: int,
    samples: int,
    seed: int,
    read_s: float,
    hang_s: float,
    copyable: int,
) -> WorkersAnswer:
    """Return `answer` with the results of the reads in the process itself."""
    start_s = time.monotonic()
    batches = [batch for batch, _ in run.batches] or [list(range(min(COMPARED_BATCH, samples)))]
    own_reads, points = read_in_process(data, batches, seed=seed, read_s=read_s)
    if run.failed == "hang" and (time.monotonic() - start_s) / (2 * len(own_reads)) * SLOW_FACTOR > hang_s:
        slow = f"the data is slow: workers delivered no batch within {hang_s:.0f} s"
        return answer.model_copy(update={"failed": "", "error": "", "not_compared": slow})
    comparison = compare(run.batches, own_reads)
    update: dict[str, object] = comparison._asdict()
    update.pop("unstable")
    if comparison.unstable > comparison.compared:
        update |= {"not_compared": "the dataset is not deterministic: two reads of one index differ", "wrong": 0, "swapped": 0}
        if workers > 1 and (generator := find_generator(data)) is not None:
            update["repeats"] = str(generator)
    if run.failed:
        update |= {"failed": run.failed, "error": run.error}
    update["kept_bytes"] = int(kept_per_sample(points) * samples)
    update["copied_bytes"] = at_most(run.points, samples, bound_bytes=copyable)
    return answer.model_copy(update=update)


def _why_not_sent(pickled: Pickled, task: Task) -> str:
    """Return why the datasets and the collate function cannot be sent to workers that are not forked. Empty: they can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "this system can only fork processes"
    if pickled.size is None:
        return pickled.why_not
    other = Pickled(0, complete=True) if task.eval_data is None else pickled_bytes(task.eval_data)
    if other.size is None:
        return other.why_not
    collate = pickled_bytes(task.collate_fn)
    return f"its collate_fn cannot be pickled: {collate.why_not}" if collate.size is None else ""


def _tensor_bytes(task: Task) -> int:
    return sum(tensor.nbytes for tensor in (*task.model.parameters(), *task.model.buffers()))


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process, bytes."""
    return (read_status() or ProcessMemory()).anonymous_bytes
