"""One pass over the evaluation data, reduced exactly."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from batchcal.calibration.records.size_rule import SizeRule
from batchcal.core.errors import NothingFits, UserCodeError
from batchcal.core.units import count_of
from batchcal.guard.children.memory_errors import memory_error
from batchcal.guard.children.release import trim
from batchcal.guard.children.report import describe, free_frames
from batchcal.runtime.accumulate import groups
from batchcal.runtime.batches import MicroBatch
from batchcal.train.ending.stop_request import StopRequest
from batchcal.train.recovery.splitter import Splitter
from batchcal.workload.model.optimizers import set_mode
from batchcal.workload.step import batch_weight, evaluate, move
from batchcal.workload.task import Task


def evaluate_all(
    task: Task,
    loader: DataLoader[object],
    *,
    device: torch.device,
    stop_request: StopRequest | None = None,
    report: Callable[[int, str], None] | None = None,
    size_rule: SizeRule | None = None,
) -> dict[str, float]:
    """Return means over all of `loader` (of `make_eval_loader`), in eval mode and without gradients, each batch by its weight.

    The means are `loss`, if evaluation is the loss (no `eval_step`), and every metric of the task by its own sums and weights, so
    that a last, smaller batch has its own weight. NaN if all weights are 0. The result of an `eval_step` is not used. A batch
    that does not fit into memory is evaluated in halves, which does not change sums.

    Args:
        stop_request: a signal ends the pass early; the means are then not usable.
        report: called with the samples of a batch that did not fit, and with the reason.
        size_rule: batch sizes that the task accepts. None: every size.

    Raises:
        NothingFits: a batch does not fit and cannot be made smaller.
        UserCodeError: the metrics are not sums and weights.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    weights: defaultdict[str, float] = defaultdict(float)
    was_training = task.model.training
    set_mode(task, training=False)
    try:
        for group in groups(loader):
            for micro_batch in group.micro_batches:
                if stop_request is not None and stop_request.granted:
                    return {}
                for name, (total, weight) in _evaluate_with_halves(task, micro_batch, device, report, size_rule).items():
                    sums[name] += total
                    weights[name] += weight
                del micro_batch
    finally:
        set_mode(task, training=was_training)
    return {name: sums[name] / weights[name] if weights[name] else math.nan for name in sums}


def _evaluate_with_halves(
    task: Task,
    micro_batch: MicroBatch,
    device: torch.device,
    report: Callable[[int, str], None] | None,
    size_rule: SizeRule | None,
) -> dict[str, tuple[float, float]]:
    try:
        return _evaluate_batch(task, move(micro_batch.batch, device), micro_batch.samples, device)
    except Exception as error:
        raised = describe(error, "measure")
        if memory_error(raised) is None:
            raise
        free_frames(error)
    trim()
    data = task.train_data if task.eval_data is None else task.eval_data
    halves = Splitter(data, task.collate_fn, size_rule).halves(micro_batch)
    if halves is None:
        raise NothingFits(
            f"memory ran out in the evaluation of {count_of(micro_batch.samples, 'sample')}: {raised.headline}",
            known="this batch cannot be made smaller",
            try_="a smaller evaluation batch, or a larger --margin",
        )
    if report is not None:
        report(micro_batch.samples, raised.headline)
    totals: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for half in halves:
        for name, (total, weight) in _evaluate_with_halves(task, half(), device, report, size_rule).items():
            totals[name] = (totals[name][0] + total, totals[name][1] + weight)
    return totals


def _evaluate_batch(task: Task, batch: object, samples: int, device: torch.device) -> dict[str, tuple[float, float]]:
    values: dict[str, tuple[float, float]] = {}
    weight = batch_weight(task, batch, samples)
    if weight == 0 and task.weight_of is None:
        return values  # the collate function left no sample
    result = evaluate(task, batch)
    if task.eval_step is None and isinstance(result, Tensor):
        # The mean of no values is NaN, and 0 x NaN is NaN, too.
        values["loss"] = (float(result) * weight if weight else 0.0, weight)
    if task.metrics is not None:
        with torch.no_grad(), torch.autocast(device.type, dtype=task.autocast, enabled=task.autocast is not None):
            metrics: object = task.metrics(task.model, batch)
        if not isinstance(metrics, Mapping):
            raise _no_metrics(metrics)
        for name, pair in metrics.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise _no_metrics(metrics)
            values[str(name)] = (float(pair[0]), float(pair[1]))
    return values


def _no_metrics(returned: object) -> UserCodeError:
    return UserCodeError(
        f"metrics returned {returned!r}"[:200],
        known="each metric needs a sum and a weight, because means over batches of different sizes cannot be combined",
        try_="return {'accuracy': (number_correct, number_of_samples)}",
    )
