"""Code of a separate child: checks the promises of a task. The parent refers to it by name and does not call it."""

from __future__ import annotations

import itertools
from typing import Final

import torch
from torch import nn

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.report import describe
from batchcal.guard.job import ChildContext
from batchcal.measure.inside.mean_over_weight import check_mean
from batchcal.measure.inside.promise_job import PromiseAnswer, PromiseArguments
from batchcal.measure.inside.samples import Samples
from batchcal.measure.inside.subject import Subject
from batchcal.workload.model.normalization import batch_normalizations
from batchcal.workload.model.optimizers import needs_closure
from batchcal.workload.step import move
from batchcal.workload.task import Task

CHECK_LIMIT_S: Final = 0.5
"""Seconds after which no further batch is checked."""


def check_promises(request: PromiseArguments, context: ChildContext) -> JSON:
    """Run the checks that need the task itself: the statistics of its layers, and the gradients of a few samples."""
    context.phase("load")
    subject = Subject.load(request.setting)
    context.phase("measure")
    statistics, closure = batch_statistics(subject.task.model), step_without_loss(subject.task)
    for check in (statistics, *closure):
        # Report now: the parent keeps these if the gradients need too much memory and this process is killed.
        context.send({"promise": check.model_dump(mode="json")})
    samples = Samples(subject.task, seed=request.setting.seed, most=request.samples)
    if statistics.result == "violated":
        statistics = statistics.model_copy(update={"single_sample_error": single_sample_error(subject, samples)})
    mean = check_mean(subject.plain_task(), samples, subject.device, unit=request.setting.multiple_of, limit_s=CHECK_LIMIT_S)
    return PromiseAnswer(promises=(mean, statistics, *closure)).model_dump(mode="json")


def step_without_loss(task: Task) -> tuple[PromiseCheck, ...]:
    """Return a violation if the optimizer's step computes the loss again. The batch must then be undivided."""
    if not needs_closure(task.optimizer):
        return ()
    name = type(task.optimizer).__name__
    cause = f"{name} computes the loss again within its step, so it works with one micro-batch only"
    return (PromiseCheck(promise="step-without-loss", result="violated", cause=cause, fix="an optimizer such as AdamW"),)


def single_sample_error(subject: Subject, samples: Samples) -> str:
    """Return the error of the task's loss for one sample in training mode, in one line. Empty: there is none."""
    subject.task.model.train()
    try:
        with torch.no_grad():
            subject.task.loss(subject.task.model, move(samples.draw(1, 0, of=1).batch(0, 1), subject.device))
    except Exception as error:  # noqa: BLE001 - whatever the task's own code raises is the answer
        return describe(error, "measure").headline
    return ""


def batch_statistics(model: nn.Module) -> PromiseCheck:
    """Check whether a layer computes batch statistics in training mode. Then parts of a batch are a different training."""
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
