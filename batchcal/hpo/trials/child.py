"""The child process of a trial: it trains with the sampled values and reports its results. The parent names these functions and
never calls them. They have no access to the study or its storage."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch.utils.data import IterableDataset, Subset

from batchcal.calibration.schema import OFF
from batchcal.calibration.store import read_again
from batchcal.core.errors import UsageError
from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.release import trim
from batchcal.guard.job import ChildContext
from batchcal.guard.limits.fence import OwnDataLimit
from batchcal.hpo.trials.folds import deal
from batchcal.hpo.trials.job import Reached, TrialAnswer, TrialRequest
from batchcal.runtime.apply import apply
from batchcal.train.loop import train
from batchcal.train.memory.predictor import predictor_of
from batchcal.train.options import TrainOptions
from batchcal.train.result import TrainingResult
from batchcal.train.seed import seed_everything
from batchcal.values.training_events import EpochEnded, StepEnded, TrainingEvent
from batchcal.workload.data.fetch import sample_at
from batchcal.workload.data.streams import length_of
from batchcal.workload.model.activation_checkpointing import GradientCheckpointManager
from batchcal.workload.model.loss_error import LossIsNoNumber
from batchcal.workload.spec.load import load_task
from batchcal.workload.task import Task

SIGN_OF_LIFE_S: Final = 1.0
MOST_WARMUP: Final = 0.99


def run_trial(request: TrialRequest, context: ChildContext) -> JSON:
    """Train the task of the request, in every fold."""
    context.phase("load", limit_s=request.stall_limit_s)
    apply(request.plan)
    predictor, checkpointed = None, OFF
    if request.calibration is not None:
        calibration = read_again(Path(request.calibration))
        predictor = predictor_of(calibration, request.plan)
        checkpointed = calibration.options.activation_checkpointing
    watcher = _Watcher(request, context)
    held_out: tuple[tuple[int, ...], ...] = ()
    results: list[TrainingResult] = []
    for fold in range(max(1, request.folds)):
        seed_everything(request.options.seed)
        task = load_task(request.reference, device=request.plan.device)
        if checkpointed != OFF:
            GradientCheckpointManager(task.model, checkpointed).enable()
        if request.folds:
            held_out = held_out or folds_of(task, request.folds, seed=request.options.seed, alive=watcher.alive_if_due)
            task = in_fold(task, held_out, fold)
        if fold == 0 and request.options.fence and request.memory_limit_bytes is not None:
            arm(context, request.memory_limit_bytes)
        watcher.begin(fold)
        options = replace(request.options, memory_limit_bytes=request.memory_limit_bytes)
        options = with_warmup(options, request.warmup_steps, task, request.plan.effective_batch)
        task = watcher.with_signs_of_life(task)
        results.append(train(task, request.plan, options, predictor=predictor, progress=watcher))
        watcher.end_fold()
        # The next fold has its own model and data.
        del task
        gc.collect()
        trim()
    context.phase("finish")
    reasons = [result.stop_reason for result in results if result.stop_reason]
    answer = TrialAnswer(
        value=math.fsum(watcher.bests) / len(watcher.bests),
        fold_values=tuple(watcher.bests) if request.folds else (),
        epochs=sum(len(result.epochs) for result in results),
        stop_reason=reasons[0] if reasons else None,
        peak_bytes=max(result.peak_bytes for result in results),
        samples_per_s=sum(result.samples_per_s for result in results) / len(results),
        steps={str(samples): count for samples, count in sorted(watcher.steps.items(), reverse=True)},
        recoveries=sum(result.recoveries for result in results),
    )
    return answer.model_dump(mode="json")


def arm(context: ChildContext, memory_limit_bytes: int) -> None:
    """Report to the parent whether a data limit is effective here. The training adjusts its own limit as it runs: a limit that
    is set once, from outside, counts memory that was mapped and is free by now, and stacks of threads that start later."""
    fence = OwnDataLimit()
    fence.hold(memory_limit_bytes)
    context.arm()
    fence.lift()


def folds_of(task: Task, folds: int, *, seed: int, alive: Callable[[], None] = lambda: None) -> tuple[tuple[int, ...], ...]:
    """Return the samples that each fold holds out, stratified if the task has labels. For the labels, load every sample once.

    Args:
        alive: called for each sample if the task has labels.

    Raises:
        UsageError: the data is a stream, or has too few samples.
    """
    data = task.train_data
    samples = length_of(data)
    if samples is None or isinstance(data, IterableDataset):
        raise UsageError(
            "a stream cannot be divided into folds", known="cross-validation needs train_data with a length", try_="folds = 0"
        )
    label_of = task.label_of
    labels: list[str] | None = None
    if label_of is not None:
        labels = []
        for index in range(samples):
            labels.append(_text(label_of(sample_at(data, index))))
            alive()
    return deal(samples, folds, seed=seed, labels=labels)


def in_fold(task: Task, held_out: Sequence[Sequence[int]], fold: int) -> Task:
    """Return `task`, evaluated on the samples that `fold` holds out and trained on those that the other folds hold out."""
    data, size_of = task.train_data, task.size_of
    train_indices = sorted(index for number, indices in enumerate(held_out) if number != fold for index in indices)
    if size_of is not None and not callable(size_of):
        costs = size_of
        size_of = [float(costs[index]) for index in train_indices]
    return replace(task, train_data=Subset(data, train_indices), eval_data=Subset(data, held_out[fold]), size_of=size_of)


class _Watcher:
    """Listener of the training: reports the value of each epoch, counts samples per step, and sends periodic signs of life."""

    def __init__(self, request: TrialRequest, context: ChildContext) -> None:
        self._request, self._context = request, context
        self._sign = -1.0 if request.maximize else 1.0
        self._fold = 0
        self._best = math.inf
        self._last_sign_s = float("-inf")
        self._last_resource = 0
        self._peak_bytes = 0
        self.bests: list[float] = []
        self.steps: dict[int, int] = {}

    def begin(self, fold: int) -> None:
        self._fold, self._best = fold, math.inf
        self._alive()

    def end_fold(self) -> None:
        """Raises:
        LossIsNoNumber: no epoch has a finite value.
        """
        if not math.isfinite(self._best):
            raise LossIsNoNumber(f"{self._request.metric} was NaN or infinite in every epoch")
        self.bests.append(self._sign * self._best)
        if self._request.folds:
            self._report((self._fold + 1) * self._request.options.epochs)

    def with_signs_of_life(self, task: Task) -> Task:
        """Return `task`, in which each evaluation batch is a sign of life."""
        metrics = task.metrics

        def observed_metrics(model: object, batch: object) -> Mapping[str, tuple[float, float]]:
            self.alive_if_due()
            return {} if metrics is None else metrics(model, batch)

        return replace(task, metrics=observed_metrics)

    def event(self, event: TrainingEvent, /) -> None:
        if isinstance(event, StepEnded):
            self.steps[event.samples] = self.steps.get(event.samples, 0) + 1
            self._peak_bytes = max(self._peak_bytes, event.peak_bytes or 0)
            self.alive_if_due()
        elif isinstance(event, EpochEnded):
            value = self._value(event)
            if value is not None and math.isfinite(value):
                self._best = min(self._best, self._sign * value)
            self._report(self._fold * self._request.options.epochs + event.epoch + 1)

    def _value(self, event: EpochEnded) -> float | None:
        """Return the value of the metric. None: it was NaN or infinite.

        Raises:
            UsageError: the task has no such metric.
        """
        metric = self._request.metric
        if metric in event.evaluation:
            return event.evaluation[metric]
        if metric == "loss" and not event.evaluation:
            return event.loss
        names = ", ".join(event.evaluation)
        raise UsageError(
            f"the task has no metric {metric!r}",
            known=f"it has {names}" if names else "it has no metrics, and no evaluation data",
            try_='metric = "loss"',
        )

    def _report(self, resource: int) -> None:
        if resource <= self._last_resource:  # the last epoch of a fold is also its end
            return
        of_all = [*(self._sign * value for value in self.bests), *([self._best] if len(self.bests) <= self._fold else [])]
        mean = math.fsum(of_all) / len(of_all)
        if math.isfinite(mean):
            self._last_resource = resource
            reached = Reached(resource=resource, value=self._sign * mean, peak_bytes=self._peak_bytes)
            self._context.send(reached.model_dump(mode="json"))

    def alive_if_due(self) -> None:
        if time.monotonic() - self._last_sign_s >= SIGN_OF_LIFE_S:
            self._alive()

    def _alive(self) -> None:
        self._last_sign_s = time.monotonic()
        self._context.phase("measure", limit_s=self._request.stall_limit_s)


def with_warmup(options: TrainOptions, steps: int | None, task: Task, effective_batch: int) -> TrainOptions:
    """Return `options` with a warm-up of `steps` steps. Its share of the training depends on the data, so it is computed here."""
    samples = length_of(task.train_data)
    if steps is None or samples is None:
        return options
    return replace(options, warmup=min(steps / (options.epochs * -(-samples // effective_batch)), MOST_WARMUP))


def _text(label: object) -> str:
    """Return the text of a label, which may be a tensor or an array with one value."""
    item: object = getattr(label, "item", None)
    return repr(item() if callable(item) else label)
