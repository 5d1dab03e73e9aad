"""All that a training needs, made once before its first step."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader, IterableDataset

from batchcal.core.clock import Clock
from batchcal.core.errors import NothingFits, UsageError
from batchcal.core.progress import Field, Progress
from batchcal.core.units import format_bytes
from batchcal.plan.plan import Plan
from batchcal.runtime.batches import GroupSampler
from batchcal.runtime.loader import make_eval_loader, make_loader
from batchcal.train.checkpoint import Standing, load_checkpoint
from batchcal.train.data.sampler import MemoryAwareBatchSampler
from batchcal.train.learning_rate import LearningRate
from batchcal.train.memory.composition import Composition
from batchcal.train.memory.monitor import MemoryMonitor
from batchcal.train.memory.predictor import MemoryPredictor, straight_line
from batchcal.train.memory.room import Room, meter_of
from batchcal.train.memory_control import MemoryControl
from batchcal.train.multitask.gradnorm import GradNormBalancer
from batchcal.train.multitask.task_losses import weighed
from batchcal.train.options import TrainOptions
from batchcal.train.seed import seed_everything
from batchcal.train.sizes.normalizer import EffectiveBatchSizeNormalizer
from batchcal.train.sizes.scheduler import GradientAccumulationScheduler
from batchcal.workload.batches import WorstCase, nest_bytes
from batchcal.workload.peak import PeakMeter
from batchcal.workload.step import make_scaler, prepare
from batchcal.workload.task import Task

LOOK_S: Final = 0.5
"""For the largest samples, where no calibration tells their size."""


@dataclass(frozen=True)
class Course:
    """A training that is about to begin, or to go on."""

    task: Task
    """As it is trained."""
    evaluated: Task
    """As it is evaluated: its losses as the task itself weighs them."""
    options: TrainOptions
    device: torch.device
    scaler: GradScaler | None
    loader: DataLoader[object]
    eval_loader: DataLoader[object] | None
    rate: LearningRate
    control: MemoryControl
    balancer: GradNormBalancer | None
    """Of the task losses. None: the task weighs them itself."""
    sampler: MemoryAwareBatchSampler | None
    """Of batches by cost. None: they are made as shuffled."""
    peak: PeakMeter
    first: Standing
    """Where it begins."""
    resumed: bool
    checkpoint: Path | None
    progress: Progress
    clock: Clock

    @property
    def host_peak(self) -> PeakMeter:
        """Of this process's host memory."""
        return self.peak if self.device.type == "cpu" else PeakMeter(torch.device("cpu"))

    def trained(self, standing: Standing) -> int:
        """Samples of all epochs until now; those of the epochs before are not known of a stream, and count for nothing there."""
        return standing.epoch * (self.first.train_samples or 0) + standing.samples

    def facts(self, plan: Plan) -> dict[str, Field]:
        """What a log begins with."""
        samples, standing = self.first.train_samples, self.first
        return {
            "kind": "run",
            "format": 1,
            "seed": self.options.seed,
            "epochs": self.options.epochs,
            "epoch": standing.epoch,
            "effective_batch": plan.effective_batch,
            "micro_batch": plan.micro_batch,
            "accumulation_steps": plan.accumulation_steps,
            "train_samples": samples,
            "steps_per_epoch": None if samples is None else -(-samples // plan.effective_batch),
            "budget_bytes": plan.budget_bytes,
            "limit_bytes": self.control.monitor.look().limit_bytes,
            "allocator": plan.allocator,
            "device": plan.device,
            "resumed_at_sample": standing.samples,
            "lr_rule": self.options.lr_rule,
            "batching": self.options.batching,
            "loss_weights": self.options.loss_weights,
        }


def make_course(
    task: Task,
    plan: Plan,
    options: TrainOptions,
    *,
    checkpoint: Path | None,
    resume: bool,
    predictor: MemoryPredictor | None,
    progress: Progress,
    clock: Clock,
) -> Course:
    """Moves the task to its device, loads the checkpoint, makes loaders and control.

    Raises:
        UsageError: a checkpoint that does not fit, data that makes no batch, options that do not go with the task.
        NothingFits: a sample that is larger than all memory.
    """
    device = torch.device(plan.device)
    if options.patience is not None and task.eval_data is None:
        progress.event("notice", {"text": "there is no evaluation data: early stopping is off"})
    prepare(task, device)
    scaler = make_scaler(task, device)
    evaluated, (task, balancer) = task, weighed(task, options.loss_weights, scaler)
    seed_everything(options.seed, 0)
    samples = length_of(task.train_data)
    standing = Standing(seed=options.seed, effective_batch=plan.effective_batch, train_samples=samples, epoch=0, group=0)
    normalizer = EffectiveBatchSizeNormalizer(options.lr_reference_batch or plan.effective_batch, options.lr_rule)
    rate = LearningRate(
        task.optimizer,
        schedule=options.schedule,
        warmup=options.warmup,
        samples=None if samples is None else samples * options.epochs,
        normalizer=normalizer,
    )
    sampler = _sampler(task, plan, options)
    meter, peak = meter_of(device, clock, options.memory_limit_bytes), PeakMeter(device)
    # Before the checkpoint: to load a sample may draw random numbers.
    predictor = predictor or _guessed(task, plan, options.seed, meter.read().own_bytes)
    if sampler is None:
        _refuse_too_large(task, predictor, meter.read(), options.seed)
    resumed = resume and checkpoint is not None and checkpoint.exists()
    if resumed and checkpoint is not None:
        loaded = load_checkpoint(checkpoint, task, scaler=scaler, balancer=balancer, sampler=sampler)
        standing = _same_course(loaded, standing, checkpoint)
    loader = make_loader(
        plan,
        task.train_data,
        collate_fn=task.collate_fn,
        seed=options.seed,
        drop_last=options.drop_last,
        epoch=standing.epoch,
        first_sample=standing.samples,
        sampler=sampler,
    )
    control = MemoryControl(
        task,
        device,
        monitor=MemoryMonitor(meter, clock, fence=options.fence and device.type == "cpu"),
        peak=peak,
        predictor=predictor,
        scheduler=GradientAccumulationScheduler(
            plan.micro_batch, start=options.start_micro_batch, within=None if sampler is None else sampler.within
        ),
        settings=options.control,
        clock=clock,
        progress=progress,
        batchnorm=options.on_oom,
        group_of=None if sampler is None else sampler.group_of,
    )
    if isinstance(loader.batch_sampler, GroupSampler):
        loader.batch_sampler.limit = control.scheduler.allowed
    return Course(
        task=task,
        evaluated=evaluated,
        options=options,
        device=device,
        scaler=scaler,
        loader=loader,
        eval_loader=None if task.eval_data is None else make_eval_loader(plan, task.eval_data, collate_fn=task.collate_fn),
        rate=rate,
        control=control,
        balancer=balancer,
        sampler=sampler,
        peak=peak,
        first=standing,
        resumed=resumed,
        checkpoint=checkpoint,
        progress=progress,
        clock=clock,
    )


def _sampler(task: Task, plan: Plan, options: TrainOptions) -> MemoryAwareBatchSampler | None:
    if options.batching == "plain":
        return None
    return MemoryAwareBatchSampler.of(
        task,
        plan,
        mode=options.batching,
        balance=options.balance,
        window=options.window,
        seed=options.seed,
        drop_last=options.drop_last,
    )


def length_of(dataset: object) -> int | None:
    """Samples of an epoch. None: a stream."""
    return len(dataset) if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset) else None


def _guessed(task: Task, plan: Plan, seed: int, own_bytes: int) -> MemoryPredictor:
    """From the plan alone: what is held now at no sample, its peak at its micro-batch."""
    worst = WorstCase.of(task, "train", limit_s=LOOK_S, seed=seed)
    size = min(8, plan.micro_batch)
    return straight_line(own_bytes, plan.micro_batch, plan.predicted_peak_bytes, nest_bytes(worst.batch(size)) / size)


def _refuse_too_large(task: Task, predictor: MemoryPredictor, room: Room, seed: int) -> None:
    """Where sizes are told, the largest sample is looked at before anything is trained.

    Raises:
        NothingFits: alone it is predicted to need more than there is; names it.
    """
    if task.size_of is None:
        return
    worst = WorstCase.of(task, "train", limit_s=LOOK_S, seed=seed)
    if not worst.indexable:
        return
    need = predictor.predict(Composition(1, nest_bytes(worst.batch(1))))
    there = room.limit_bytes - room.others_bytes
    if need > there:
        raise NothingFits(
            f"sample {worst.indices(1)[0]} of the training data is too large: alone it is predicted to need {format_bytes(need)}",
            known=f"there are {format_bytes(there)}; nothing has been trained",
            try_="leave it out or make it smaller, a higher memory limit, or --activation-checkpointing auto",
        )


def _same_course(saved: Standing, now: Standing, path: Path) -> Standing:
    """`saved`, where its position means the same here.

    Raises:
        UsageError: another seed or number of samples, in the middle of an epoch.
    """
    if saved.samples:
        for name in ("seed", "train_samples"):
            then, today = getattr(saved, name), getattr(now, name)
            if then != today:
                what = name.replace("_", " ")
                raise UsageError(
                    f"{path} stands in the middle of epoch {saved.epoch}, where {what} was {then}; it is {today} now",
                    known="the samples that are left of the epoch would not be the same",
                    try_=f"the former {what}, or without --resume to begin anew",
                )
    return saved.model_copy(update={"seed": now.seed, "effective_batch": now.effective_batch, "train_samples": now.train_samples})
