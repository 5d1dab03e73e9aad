"""Everything that a training needs, made once before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader

from batchcal.core.clock import Clock
from batchcal.core.errors import NothingFits, UsageError
from batchcal.core.progress import Notice, Progress
from batchcal.core.units import count_of, format_bytes
from batchcal.extras.batching.sampler import MemoryAwareBatchSampler
from batchcal.extras.multitask.gradnorm import GradNormBalancer
from batchcal.extras.multitask.task_losses import weighed
from batchcal.machine.peak_meter import PeakMeter
from batchcal.plan.plan import Plan
from batchcal.runtime.batches import GroupSampler
from batchcal.runtime.loader import make_eval_loader, make_loader, rejected_samples
from batchcal.runtime.separate_reading import read_separately
from batchcal.train.checkpoints.checkpoint import Standing, load_checkpoint, save_checkpoint, why_not_resumable
from batchcal.train.checkpoints.extra_state import ExtraState
from batchcal.train.checkpoints.resumed_group import refuse_last_group
from batchcal.train.checkpoints.writer import CheckpointWriter
from batchcal.train.ending.worker_failures import KernelKills
from batchcal.train.learning_rate import LearningRate
from batchcal.train.memory.available import AvailableMemory, meter_of
from batchcal.train.memory.composition import Composition
from batchcal.train.memory.control import MemoryControl
from batchcal.train.memory.monitor import MemoryMonitor
from batchcal.train.memory.predictor import MemoryPredictor, straight_line
from batchcal.train.options import TrainOptions
from batchcal.train.seed import seed_everything
from batchcal.train.sizes.normalizer import EffectiveBatchSizeNormalizer
from batchcal.train.sizes.scheduler import GradientAccumulationScheduler
from batchcal.values.training_events import TrainingEvent, TrainingStarted
from batchcal.workload.data.sample_size import nest_bytes
from batchcal.workload.data.streams import is_endless, length_of
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.model.normalization import batch_normalizations
from batchcal.workload.step import make_scaler, prepare
from batchcal.workload.task import Task

SEARCH_LIMIT_S: Final = 0.5
"""Time limit of the search for the largest samples, if no calibration has their size."""


@dataclass(frozen=True)
class TrainingSetup:
    """A training that is about to begin or to continue."""

    task: Task
    """The task for training."""
    evaluated: Task
    """The task for evaluation: the task itself weights its losses."""
    options: TrainOptions
    device: torch.device
    scaler: GradScaler | None
    loader: DataLoader[object]
    eval_loader: DataLoader[object] | None
    rate: LearningRate
    control: MemoryControl
    balancer: GradNormBalancer | None
    """Balancer of the task losses. None: the task weights them itself."""
    sampler: MemoryAwareBatchSampler | None
    """Sampler of batches by cost. None: batches follow the shuffled order."""
    peak: PeakMeter
    planned_peak_bytes: int
    """Peak of a step that the plan predicts."""
    first: Standing
    """State at which the training begins."""
    resumed: bool
    writer: CheckpointWriter
    kernel_kills: KernelKills
    progress: Progress[TrainingEvent]
    clock: Clock

    @property
    def host_peak(self) -> PeakMeter:
        """Peak of this process's host memory."""
        return self.peak if self.device.type == "cpu" else PeakMeter(torch.device("cpu"))

    def trained(self, standing: Standing) -> int:
        """Samples of all epochs until now. For a stream, those of the earlier epochs are unknown and count as 0."""
        return standing.epoch * (self.first.train_samples or 0) + standing.samples

    def started(self, plan: Plan) -> TrainingStarted:
        """Return the first event of a log."""
        samples, standing = self.first.train_samples, self.first
        steps_per_epoch = None if samples is None else -(-samples // plan.effective_batch)
        return TrainingStarted(
            seed=self.options.seed,
            epochs=_epochs(self.options, steps_per_epoch),
            epoch=standing.epoch,
            effective_batch=plan.effective_batch,
            micro_batch=plan.micro_batch,
            accumulation_steps=plan.accumulation_steps,
            train_samples=samples,
            steps_per_epoch=steps_per_epoch,
            budget_bytes=plan.budget_bytes,
            limit_bytes=self.control.monitor.read().limit_bytes,
            allocator=plan.allocator,
            device=plan.device,
            inexact=" and ".join(plan.inexact) or None,
            resumed_at_sample=standing.samples,
            lr_rule=self.options.lr_rule,
            batching=self.options.batching,
            loss_weights=self.options.loss_weights,
        )


def make_setup(
    task: Task,
    plan: Plan,
    options: TrainOptions,
    *,
    checkpoint: Path | None,
    resume: bool,
    predictor: MemoryPredictor | None,
    progress: Progress[TrainingEvent],
    clock: Clock,
) -> TrainingSetup:
    """Move the task to its device, load the checkpoint, make loaders and control.

    Raises:
        UsageError: the checkpoint does not fit, the data makes no batch, or the options do not suit the task.
        NothingFits: a sample is larger than all memory.
    """
    _refuse_other_batches(task, plan, options)
    device = torch.device(plan.device)
    _refuse_endless(task, options, progress)
    if options.patience is not None and task.eval_data is None:
        progress.event(Notice("there is no evaluation data: early stopping is off"))
    if checkpoint is not None and (reason := why_not_resumable(task.optimizer)):
        progress.event(Notice(f"this training cannot be resumed from its checkpoint: {reason}"))
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
        samples=_total_samples(options, samples, plan.effective_batch),
        normalizer=normalizer,
    )
    sampler = _sampler(task, plan, options)
    meter, peak = meter_of(device, clock, options.memory_limit_bytes), PeakMeter(device)
    # Before the checkpoint: loading a sample may draw random numbers.
    predictor = predictor or _predictor_from_plan(task, plan, options.seed, meter.read().own_bytes)
    if sampler is None:
        _refuse_too_large(task, predictor, meter.read(), options.seed, workers=plan.num_workers)
    extra_state = ExtraState(task)
    resumed = resume and checkpoint is not None and checkpoint.exists()
    if resumed and checkpoint is not None:
        loaded = load_checkpoint(checkpoint, task, scaler=scaler, balancer=balancer, sampler=sampler, extra_state=extra_state)
        standing = _checked_position(loaded, standing, checkpoint)
        if sampler is None:
            refuse_last_group(task, plan, options, standing, loaded.effective_batch)
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
    fixed = _fixed_sizes(task, plan, options)
    control = MemoryControl(
        task,
        device,
        monitor=MemoryMonitor(meter, clock, fence=options.fence and device.type == "cpu"),
        peak=peak,
        predictor=predictor,
        scheduler=GradientAccumulationScheduler(
            plan.micro_batch,
            start=options.start_micro_batch,
            within=None if sampler is None else sampler.within,
            fixed=fixed != "",
        ),
        settings=options.control,
        clock=clock,
        progress=progress,
        batchnorm=options.on_oom,
        undivided=plan.undivided,
        size_rule=plan.size_rule,
        group_of=None if sampler is None else sampler.group_of,
    )
    if isinstance(loader.batch_sampler, GroupSampler) and not fixed:
        loader.batch_sampler.rule = plan.size_rule
        loader.batch_sampler.limit = control.scheduler.allowed
    return TrainingSetup(
        task=task,
        evaluated=evaluated,
        options=options,
        device=device,
        scaler=scaler,
        loader=loader,
        eval_loader=None
        if task.eval_data is None
        else make_eval_loader(plan, task.eval_data, collate_fn=task.collate_fn, drop_last=options.drop_last),
        rate=rate,
        control=control,
        balancer=balancer,
        sampler=sampler,
        peak=peak,
        planned_peak_bytes=plan.predicted_peak_bytes,
        first=standing,
        resumed=resumed,
        writer=CheckpointWriter(
            checkpoint,
            partial(save_checkpoint, task=task, scaler=scaler, balancer=balancer, sampler=sampler, extra_state=extra_state),
            every_s=options.checkpoint_every_s,
            clock=clock,
            progress=progress,
        ),
        kernel_kills=KernelKills(),
        progress=progress,
        clock=clock,
    )


def _fixed_sizes(task: Task, plan: Plan, options: TrainOptions) -> str:
    """Return the reason why a micro-batch must not be smaller than planned. Empty: it may be smaller."""
    if plan.undivided:
        return plan.undivided
    if options.on_oom == "stop" and batch_normalizations(task.model):
        return 'the model has BatchNorm, whose statistics change with the micro-batch; on_oom = "split" accepts that'
    return ""


def _refuse_other_batches(task: Task, plan: Plan, options: TrainOptions) -> None:
    """Raise UsageError if options divide a batch that must not be divided, or if the task does not accept the last group or
    batch."""
    if plan.last_group_error and not options.drop_last:
        raise UsageError(
            f"the last group of an epoch has {count_of(sum(plan.last_group), 'sample')}, and the task fails with it",
            known=plan.last_group_error,
            try_="--drop-last to leave out that group, or another --effective-batch",
        )
    rule = plan.size_rule
    if rule is not None and not options.drop_last and task.eval_data is not None:
        rejected = rejected_samples(plan, length_of(task.eval_data))
        if rejected:
            raise UsageError(
                f"the evaluation ends with a batch of {count_of(rejected, 'sample')}, which the task does not accept",
                known=f"the task {rule.text}, and {plan.eval_batch} samples are evaluated at once",
                try_="--drop-last to leave out these samples of every evaluation, and the last group of every epoch",
            )
    fixed = _fixed_sizes(task, plan, options)
    reason = fixed or ("" if rule is None else f"the task {rule.text}")
    if not reason:
        return
    dividing = {
        "start_micro_batch": options.start_micro_batch is not None
        and options.start_micro_batch < plan.micro_batch
        and (fixed != "" or rule is None or rule.one_size or rule.fixed is not None),
        "batching": options.batching != "plain",
    }
    consent = ", or --accept-inexact to accept the mismatch" if plan.undivided else ", or --on-oom split" if fixed else ""
    for name, divides in dividing.items():
        if divides:
            raise UsageError(
                f"{name} divides the effective batch into other micro-batches, but batches of this task must not be divided",
                known=reason,
                try_=f"leave {name} out{consent}",
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


def _epochs(options: TrainOptions, steps_per_epoch: int | None) -> int | None:
    """Number of epochs that will begin. None: unknown."""
    if options.max_steps is None:
        return options.epochs
    return None if steps_per_epoch is None else min(options.epochs, -(-options.max_steps // steps_per_epoch))


def _total_samples(options: TrainOptions, samples: int | None, effective_batch: int) -> int | None:
    """Samples in all epochs. None: a stream without a length, and no number of steps."""
    by_steps = None if options.max_steps is None else options.max_steps * effective_batch
    if samples is None:
        return by_steps
    return samples * options.epochs if by_steps is None else min(by_steps, samples * options.epochs)


def _refuse_endless(task: Task, options: TrainOptions, progress: Progress[TrainingEvent]) -> None:
    """Raises:
    UsageError: an epoch of the training data never ends.
    """
    if options.max_steps is not None or length_of(task.train_data) is not None:
        return
    name = type(task.train_data).__name__
    if is_endless(task.train_data):
        raise UsageError(
            f"{name} is a stream without an end and without a length: an epoch never ends",
            known="an epoch of a stream ends after its length, or when the stream ends",
            try_="--max-steps N, or a method __len__ that returns the number of samples of an epoch",
        )
    progress.event(Notice(f"{name} is a stream without a length: an epoch ends when the stream ends, or after --max-steps N"))


def _predictor_from_plan(task: Task, plan: Plan, seed: int, own_bytes: int) -> MemoryPredictor:
    """Make a predictor from the plan alone: current memory at 0 samples, the plan's peak at its micro-batch."""
    size = min(8, plan.micro_batch)

    def bytes_per_sample() -> float:
        return nest_bytes(WorstCase.of(task, "train", limit_s=SEARCH_LIMIT_S, seed=seed).batch(size)) / size

    sample_bytes = read_separately(bytes_per_sample, workers=plan.num_workers)
    return straight_line(own_bytes, plan.micro_batch, plan.predicted_peak_bytes, sample_bytes)


def _refuse_too_large(task: Task, predictor: MemoryPredictor, room: AvailableMemory, seed: int, *, workers: int) -> None:
    """Check the largest sample before the training, if the task reports sizes.

    Raises:
        NothingFits: the sample alone is predicted to need more than the available memory. The error names the sample.
    """
    if task.size_of is None:
        return

    def largest() -> tuple[int, int] | None:
        worst = WorstCase.of(task, "train", limit_s=SEARCH_LIMIT_S, seed=seed)
        return (worst.indices(1)[0], nest_bytes(worst.batch(1))) if worst.indexable else None

    sample = read_separately(largest, workers=workers)
    if sample is None:
        return
    index, size = sample
    need = predictor.predict(Composition(1, size))
    available = room.limit_bytes - room.others_bytes
    if need > available:
        raise NothingFits(
            f"sample {index} of the training data is too large: this sample alone is predicted to need {format_bytes(need)}",
            known=f"{format_bytes(available)} are available; the training has not started",
            try_="leave out that sample or make it smaller, use a higher memory limit, or --activation-checkpointing auto",
        )


def _checked_position(saved: Standing, current: Standing, path: Path) -> Standing:
    """Return `saved` if its position has the same meaning here.

    Raises:
        UsageError: another seed or number of samples, in the middle of an epoch.
    """
    if saved.samples:
        for name in ("seed", "train_samples"):
            old, new = getattr(saved, name), getattr(current, name)
            if old != new:
                label = name.replace("_", " ")
                raise UsageError(
                    f"{path} was saved in the middle of epoch {saved.epoch}: {label} was {old}, and is now {new}",
                    known="the remaining samples of that epoch would not be the same",
                    try_=f"the former {label}, or leave out --resume to start a new training",
                )
    return saved.model_copy(
        update={"seed": current.seed, "effective_batch": current.effective_batch, "train_samples": current.train_samples}
    )
