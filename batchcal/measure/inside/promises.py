"""Inside a child of its own: checks what a task promises. Named by the parent, never called by it."""

from __future__ import annotations

import itertools
from typing import Final

import torch
from torch import nn

from batchcal.calibration.promises import PromiseCheck
from batchcal.guard.job import ChildContext
from batchcal.guard.report import describe
from batchcal.guard.wire import JSON
from batchcal.measure.inside.mean_over_weight import check_mean
from batchcal.measure.inside.promise_job import PromiseAnswer, PromiseArguments
from batchcal.measure.inside.sampled import Samples
from batchcal.measure.inside.subject import Subject
from batchcal.workload.normalization import batch_normalizations
from batchcal.workload.optimizers import needs_closure
from batchcal.workload.step import move
from batchcal.workload.task import Task

CHECK_LIMIT_S: Final = 0.5
"""No further batch is checked after that."""


def check_promises(request: PromiseArguments, context: ChildContext) -> JSON:
    """The checks that need the task itself: the statistics of its layers, and the gradients of a few samples."""
    context.phase("load")
    subject = Subject.load(request.setting)
    context.phase("measure")
    statistics, closure = batch_statistics(subject.task.model), step_without_loss(subject.task)
    for check in (statistics, *closure):
        # Now: the parent keeps these if the gradients need too much memory and this process is killed.
        context.tell({"promise": check.model_dump(mode="json")})
    samples = Samples(subject.task, seed=request.setting.seed, most=request.samples)
    if statistics.result == "violated":
        statistics = statistics.model_copy(update={"single_sample_error": single_sample_error(subject, samples)})
    mean = check_mean(subject.plain_task(), samples, subject.device, unit=request.setting.multiple_of, limit_s=CHECK_LIMIT_S)
    return PromiseAnswer(promises=(mean, statistics, *closure)).model_dump(mode="json")


def step_without_loss(task: Task) -> tuple[PromiseCheck, ...]:
    """A violation where the optimizer's step computes the loss again, from a batch that must then be undivided."""
    if not needs_closure(task.optimizer):
        return ()
    name = type(task.optimizer).__name__
    cause = f"{name} computes the loss again within its step, which works with one micro-batch"
    return (PromiseCheck(promise="step-without-loss", result="violated", cause=cause, fix="an optimizer such as AdamW"),)


def single_sample_error(subject: Subject, samples: Samples) -> str:
    """How the task's loss fails for one sample in training mode, in a line. Empty: it does not."""
    subject.task.model.train()
    try:
        with torch.no_grad():
            subject.task.loss(subject.task.model, move(samples.draw(1, 0, of=1).batch(0, 1), subject.device))
    except Exception as error:  # noqa: BLE001 - whatever the task's own code raises is the answer
        return describe(error, "measure").headline
    return ""


def batch_statistics(model: nn.Module) -> PromiseCheck:
    """Whether a layer computes statistics over the batch in training mode: then parts of a batch are another training."""
    model.train()
    layers = [layer for layer in batch_normalizations(model) if layer.training]
    if not layers:
        return PromiseCheck(promise="batch-statistics", result="ok")
    names = ", ".join(dict.fromkeys(type(layer).__name__ for layer in itertools.islice(layers, 8)))
    return PromiseCheck(
        promise="batch-statistics",
        result="violated",
        cause=f"{len(layers)} {names} layer{'s' if len(layers) > 1 else ''}",
        fix="GroupNorm or LayerNorm instead, or an effective batch that fits undivided",
    )
