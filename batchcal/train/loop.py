"""A plain training that runs a plan: exact groups, evaluation at its own size, a checkpoint. No recovery, no control."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sized
from itertools import islice
from pathlib import Path

import psutil
import torch
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader, IterableDataset

from batchcal.core.clock import Clock, SystemClock
from batchcal.core.errors import Interrupted, UsageError
from batchcal.core.progress import Field, Progress, Silent
from batchcal.guard.meters import read_status, reset_peak
from batchcal.plan.plan import Plan
from batchcal.runtime.accumulate import Group, groups
from batchcal.runtime.batches import MicroBatchSampler
from batchcal.runtime.group import run_group
from batchcal.runtime.loader import make_eval_loader, make_loader
from batchcal.train.checkpoint import Standing, load_checkpoint, save_checkpoint
from batchcal.train.evaluate import evaluate_all
from batchcal.train.result import EpochResult, TrainingResult
from batchcal.train.seed import seed_everything
from batchcal.train.stop import StopWish
from batchcal.workload.step import make_scaler, prepare
from batchcal.workload.task import Task


def train(
    task: Task,
    plan: Plan,
    *,
    epochs: int = 1,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    drop_last: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> TrainingResult:
    """Train `task` for `epochs` epochs with the settings of `plan`.

    Put the plan into force before (`runtime.apply`), and seed before the task's factory makes its model (`seed_everything`): here
    each epoch is seeded anew, from `seed` and its number.

    SIGINT and SIGTERM end it after the optimizer step that is going on, with a checkpoint; a second signal ends it at once. A
    run that resumes goes on with the next step of the same order; without workers and in the same place it ends at the same
    parameters as one that was never stopped. numpy's generator is not part of a checkpoint: each epoch's beginning seeds it.

    Events: `training_started`, `step` for each optimizer step, `epoch_ended`, `checkpoint_saved`, `training_ended`.

    Args:
        epochs: in all, those before a resume too.
        checkpoint: file that is written after every epoch and when a signal ends the run.
        resume: go on from `checkpoint`, where that exists.
        drop_last: leave the last, smaller group of each epoch out.

    Raises:
        UsageError: `epochs` below 1, `resume` without `checkpoint`, a checkpoint that does not fit, data that makes no batch.
        NotSaved: the checkpoint could not be written.
        Interrupted: a signal ended it; says where the checkpoint is.
    """
    if epochs < 1:
        raise UsageError(f"{epochs} epochs train nothing", try_="--epochs 1")
    if resume and checkpoint is None:
        raise UsageError("there is no checkpoint to resume from", try_="--checkpoint FILE --resume")
    progress, clock = progress or Silent(), clock or SystemClock()
    device = torch.device(plan.device)
    prepare(task, device)
    scaler = make_scaler(task, device)
    seed_everything(seed, 0)
    train_samples = _length(task.train_data)
    standing = Standing(seed=seed, effective_batch=plan.effective_batch, train_samples=train_samples, epoch=0, group=0)
    resumed_at: int | None = None
    if resume and checkpoint is not None and checkpoint.exists():
        standing = _same_course(load_checkpoint(checkpoint, task, scaler=scaler), standing, checkpoint)
        resumed_at = standing.epoch
    loader = make_loader(
        plan,
        task.train_data,
        collate_fn=task.collate_fn,
        seed=seed,
        drop_last=drop_last,
        epoch=standing.epoch,
        first_group=standing.group,
    )
    eval_loader = None if task.eval_data is None else make_eval_loader(plan, task.eval_data, collate_fn=task.collate_fn)
    progress.event("training_started", {"epochs": epochs, "epoch": standing.epoch, "micro_batch": plan.micro_batch})
    began = clock.monotonic()
    _reset_peak(device)

    with StopWish() as wish:
        while standing.epoch < epochs:
            if standing.group == 0:
                seed_everything(seed, standing.epoch)
            standing = _rest_of_epoch(
                task, loader, standing, device=device, scaler=scaler, wish=wish, progress=progress, clock=clock
            )
            evaluation = {} if eval_loader is None else evaluate_all(task, eval_loader, device=device, wish=wish)
            # A wish during the evaluation leaves the epoch open: what is resumed evaluates it.
            if wish.signal is None:
                standing = _closed(standing, evaluation)
                progress.event("epoch_ended", _fields(standing.history[-1]))
            if checkpoint is not None:
                save_checkpoint(checkpoint, task, standing, scaler=scaler)
                progress.event("checkpoint_saved", {"path": str(checkpoint), "epoch": standing.epoch, "group": standing.group})
            if wish.signal is not None:
                raise _interrupted(wish.signal, standing, checkpoint)

    result = TrainingResult(
        epochs=standing.history,
        samples_per_s=_rate(sum(epoch.samples for epoch in standing.history), sum(epoch.wall_s for epoch in standing.history)),
        peak_bytes=_peak_bytes(),
        accelerator_peak_bytes=None if device.type == "cpu" else torch.accelerator.max_memory_reserved(device),
        wall_s=clock.monotonic() - began,
        resumed_at_epoch=resumed_at,
    )
    progress.event(
        "training_ended", {"samples_per_s": result.samples_per_s, "peak_bytes": result.peak_bytes, "wall_s": result.wall_s}
    )
    return result


def _rest_of_epoch(
    task: Task,
    loader: DataLoader[object],
    standing: Standing,
    *,
    device: torch.device,
    scaler: GradScaler | None,
    wish: StopWish,
    progress: Progress,
    clock: Clock,
) -> Standing:
    """The optimizer steps of the epoch that are left, until its end or until a signal."""
    task.model.train()
    began = clock.monotonic()
    for group in _left(loader, standing.group):
        if wish.signal is not None:
            break
        result = run_group(task, group.micro_batches, device=device, scaler=scaler)
        ended = clock.monotonic()
        standing = standing.model_copy(
            update={
                "group": standing.group + 1,
                "weighted_loss": standing.weighted_loss + result.loss * result.weight,
                "weight": standing.weight + result.weight,
                "samples": standing.samples + result.samples,
                "wall_s": standing.wall_s + ended - began,
            }
        )
        progress.event(
            "step",
            {
                "epoch": standing.epoch,
                "step": standing.group,
                "loss": result.loss,
                "samples": result.samples,
                "micro_batches": result.micro_batches,
                "samples_per_s": _rate(result.samples, ended - began),
            },
        )
        began = ended
    return standing


def _left(loader: DataLoader[object], done: int) -> Iterator[Group]:
    """The groups of a pass that are not done. A sampler skips those by itself; those of a stream must be read past."""
    return groups(loader) if isinstance(loader.batch_sampler, MicroBatchSampler) else islice(groups(loader), done, None)


def _closed(standing: Standing, evaluation: dict[str, float]) -> Standing:
    """The epoch is done: its result joins the history and the next one begins."""
    result = EpochResult(
        epoch=standing.epoch,
        loss=standing.weighted_loss / standing.weight if standing.weight else 0.0,
        evaluation=evaluation,
        steps=standing.group,
        samples=standing.samples,
        wall_s=standing.wall_s,
        samples_per_s=_rate(standing.samples, standing.wall_s),
    )
    return Standing(
        seed=standing.seed,
        effective_batch=standing.effective_batch,
        train_samples=standing.train_samples,
        epoch=standing.epoch + 1,
        group=0,
        history=(*standing.history, result),
    )


def _same_course(saved: Standing, now: Standing, path: Path) -> Standing:
    """`saved`, where its position means the same here.

    Raises:
        UsageError: another seed, effective batch or number of samples, in the middle of an epoch.
    """
    if saved.group:
        for name in ("seed", "effective_batch", "train_samples"):
            then, today = getattr(saved, name), getattr(now, name)
            if then != today:
                what = name.replace("_", " ")
                raise UsageError(
                    f"{path} stands in the middle of epoch {saved.epoch}, where {what} was {then}; it is {today} now",
                    known="the samples that are left of the epoch would not be the same",
                    try_=f"the former {what}, or without --resume to begin anew",
                )
    return saved.model_copy(update={"seed": now.seed, "effective_batch": now.effective_batch, "train_samples": now.train_samples})


def _interrupted(number: int, standing: Standing, checkpoint: Path | None) -> Interrupted:
    return Interrupted(
        number,
        f"stopped by {signal.Signals(number).name} in epoch {standing.epoch}, after step {standing.group}",
        known="no checkpoint was asked for: nothing is kept" if checkpoint is None else f"the checkpoint is {checkpoint}",
        try_="--checkpoint FILE" if checkpoint is None else "the same command with --resume",
    )


def _fields(result: EpochResult) -> dict[str, Field]:
    measured = {"epoch": result.epoch, "loss": result.loss, "steps": result.steps, "samples_per_s": result.samples_per_s}
    return {**measured, **{f"eval_{name}": value for name, value in result.evaluation.items()}}


def _length(dataset: object) -> int | None:
    return len(dataset) if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset) else None


def _rate(samples: int, seconds: float) -> float:
    return samples / seconds if seconds > 0 else 0.0


def _reset_peak(device: torch.device) -> None:
    reset_peak()
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)


def _peak_bytes() -> int:
    """Most anonymous and shared bytes since `_reset_peak`; what is resident now where the system keeps no peak."""
    status = read_status()
    if status is None:
        return int(psutil.Process().memory_info().rss)
    return max(status.hard_bytes, status.peak_resident_bytes - status.file_bytes + status.swap_bytes)
