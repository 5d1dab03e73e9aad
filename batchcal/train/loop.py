"""The training: epochs of exact groups inside the plan, evaluated, watched, recovered from, kept."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchcal.core.clock import Clock, SystemClock
from batchcal.core.errors import BatchcalError, Interrupted, NothingFits, NotSaved, UsageError
from batchcal.core.progress import Field, Progress, Silent
from batchcal.core.units import count_of
from batchcal.guard.memory_errors import memory_error
from batchcal.guard.report import describe, let_go
from batchcal.plan.plan import Plan
from batchcal.runtime.accumulate import groups
from batchcal.runtime.group import GroupResult, run_group
from batchcal.train.checkpoint import Standing, save_checkpoint
from batchcal.train.course import Course, make_course
from batchcal.train.early_stopping import no_better_since
from batchcal.train.evaluate import evaluate_all
from batchcal.train.memory.predictor import MemoryPredictor
from batchcal.train.options import TrainOptions
from batchcal.train.result import EpochResult, TrainingResult
from batchcal.train.seed import seed_everything
from batchcal.train.stop import StopWish
from batchcal.workload.step import LossIsNoNumber, clear_gradients
from batchcal.workload.task import Task


def train(
    task: Task,
    plan: Plan,
    options: TrainOptions | None = None,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    predictor: MemoryPredictor | None = None,
    wish: StopWish | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> TrainingResult:
    """Train `task` inside `plan`.

    Put the plan into force before (`runtime.apply`), and seed before the task's factory makes its model (`seed_everything`): here
    each epoch is seeded anew, from the seed and its number.

    A micro-batch that does not fit is run again, in halves where it must be; nothing that the optimizer sees changes. The plan's
    micro-batch is the upper bound, smaller ones are used while memory is short. The effective batch is never changed.

    SIGINT and SIGTERM end it after the optimizer step that is going on, with a checkpoint; a second signal ends it at once. A run
    that resumes goes on with the next sample of the same order; without workers and in the same place it ends at the same
    parameters as one that was never stopped.

    Events: `training_started`, `step`, `recovered`, `resized`, `epoch_ended`, `checkpoint_saved`, `notice`, `training_ended`.

    Args:
        checkpoint: file that is written after every epoch, within one every `checkpoint_every_s`, and when the run is stopped.
        resume: go on from `checkpoint`, where that exists.
        predictor: what the calibration knows of the memory of a batch. None: a straight line through the plan's peak.
        wish: to stop the training from elsewhere.

    Raises:
        UsageError: `resume` without `checkpoint`, a checkpoint that does not fit, data that makes no batch, options that the task
            does not go with.
        NothingFits: memory ran out and nothing smaller can be run; says where the checkpoint is.
        UserCodeError: what the task returned is no loss, no weight or no metric, or the loss is no number any more.
        Interrupted: a signal ended it; says where the checkpoint is.
    """
    if resume and checkpoint is None:
        raise UsageError("there is no checkpoint to resume from", try_="--checkpoint FILE --resume")
    course = make_course(
        task,
        plan,
        options or TrainOptions(),
        checkpoint=checkpoint,
        resume=resume,
        predictor=predictor,
        progress=progress or Silent(),
        clock=clock or SystemClock(),
    )
    began = course.clock.monotonic()
    course.peak.begin()
    course.progress.event("training_started", course.facts(plan))
    with wish or StopWish() as asked, course.control.monitor:
        ended = _epochs(course, asked)
    epochs = ended.standing.history
    result = TrainingResult(
        epochs=epochs,
        samples_per_s=_rate(sum(epoch.samples for epoch in epochs), sum(epoch.wall_s for epoch in epochs)),
        peak_bytes=course.host_peak.most_bytes(),
        accelerator_peak_bytes=None if course.device.type == "cpu" else course.peak.most_bytes(),
        wall_s=course.clock.monotonic() - began,
        resumed_at_epoch=course.first.epoch if course.resumed else None,
        stopped_early=ended.early is not None,
        stop_reason=ended.early,
        recoveries=course.control.recoveries,
        prediction_error=course.control.prediction_error(),
        not_saved=ended.not_saved,
    )
    told = ("samples_per_s", "peak_bytes", "wall_s", "stopped_early", "stop_reason")
    course.progress.event("training_ended", {name: getattr(result, name) for name in told})
    return result


@dataclass(frozen=True)
class _Ended:
    """How far it came."""

    standing: Standing
    early: str | None = None
    """Why it ended before the last epoch."""
    not_saved: str | None = None
    """Why that is not on disk."""


def _epochs(course: Course, wish: StopWish) -> _Ended:
    standing, not_saved = course.first, None
    saved_at = course.clock.monotonic()
    while standing.epoch < course.options.epochs:
        if standing.samples == 0:
            seed_everything(course.options.seed, standing.epoch)
        try:
            for after in optimizer_steps(course, standing, wish):
                standing = after
                if course.clock.monotonic() - saved_at >= course.options.checkpoint_every_s:
                    not_saved, saved_at = _saved(course, standing), course.clock.monotonic()
            evaluation = _evaluation(course, wish)
        except Exception as error:
            told = _stopped_by(error, course, standing)
            if told is None:
                raise
            raise told from error
        # A wish during the evaluation leaves the epoch open: what is resumed evaluates it.
        if not wish.granted:
            standing = _closed(standing, evaluation)
            course.progress.event("epoch_ended", _fields(standing.history[-1]))
        not_saved, saved_at = _saved(course, standing), course.clock.monotonic()
        if wish.signal is not None:
            raise _interrupted(wish.signal, course, standing, not_saved)
        early = wish.asked or _no_better(course, standing)
        if early:
            return _Ended(standing, early, not_saved)
    return _Ended(standing, None, not_saved)


def optimizer_steps(course: Course, standing: Standing, wish: StopWish) -> Iterator[Standing]:
    """The optimizer steps that are left of the epoch, or until somebody wants it to stop: where the training is after each."""
    course.task.model.train()
    course.control.begin_group()
    began = course.clock.monotonic()
    for group in groups(course.loader):
        rate = course.rate.set(course.trained(standing), group.samples or standing.effective_batch)
        course.control.at(standing.epoch, standing.group + 1)
        result = run_group(
            course.task,
            group.micro_batches,
            device=course.device,
            scaler=course.scaler,
            guard=course.control,
            max_norm=course.options.max_norm,
        )
        if course.balancer is not None:
            course.balancer.after_step()
        ended = course.clock.monotonic()
        standing = standing.model_copy(
            update={
                "group": standing.group + 1,
                "steps": standing.steps + 1,
                "weighted_loss": standing.weighted_loss + result.loss * result.weight,
                "weight": standing.weight + result.weight,
                "samples": standing.samples + result.samples,
                "wall_s": standing.wall_s + ended - began,
            }
        )
        course.progress.event("step", _told(course, standing, result, rate, ended - began))
        paused = course.clock.monotonic()
        yield standing
        # A checkpoint that was written meanwhile is no part of the next step.
        began = ended + course.clock.monotonic() - paused
        # Before the next group is loaded, which may draw random numbers: what resumes from here loads it once more.
        if wish.granted:
            return
        course.control.begin_group()


def _stopped_by(error: Exception, course: Course, standing: Standing) -> BatchcalError | None:
    """What to raise for `error`, which came after `standing`; None: itself. Where the state is whole, it is saved."""
    refused = isinstance(error, NothingFits | LossIsNoNumber)
    out_of_memory = not refused and memory_error(describe(error, "measure")) is not None
    if out_of_memory:
        # The frames of what failed hold its tensors.
        let_go(error)
    # What refuses the optimizer's step does so before it.
    if course.control.in_update() and not refused:
        if not out_of_memory:
            return None
        earlier = "" if course.checkpoint is None else f"; {course.checkpoint} holds what was saved last"
        return NothingFits(
            f"memory ran out in the optimizer's step: {error}",
            known=f"some parameters were updated and others were not: that state is not kept{earlier}",
            try_="a larger --margin, then the same command with --resume",
        )
    clear_gradients(course.task)
    course.control.rewind()
    kept = _where_it_is(course, _saved(course, standing))
    if isinstance(error, NothingFits | LossIsNoNumber):
        return type(error)(error.what, known=f"{error.known}; {kept}" if error.known else kept, try_=error.try_)
    if out_of_memory:
        return NothingFits(f"memory ran out between two steps: {error}", known=kept, try_="fewer --workers, or a larger --margin")
    return None


def _evaluation(course: Course, wish: StopWish) -> dict[str, float | None]:
    if course.eval_loader is None or wish.granted:
        return {}
    means = evaluate_all(
        course.evaluated, course.eval_loader, device=course.device, wish=wish, tell=course.control.evaluated_in_halves
    )
    return {name: mean if math.isfinite(mean) else None for name, mean in means.items()}


def _saved(course: Course, standing: Standing) -> str | None:
    """Writes the checkpoint, where one was asked for. Returns why that was not possible: the training goes on all the same."""
    if course.checkpoint is None:
        return None
    try:
        save_checkpoint(
            course.checkpoint,
            course.task,
            standing,
            scaler=course.scaler,
            balancer=course.balancer,
            sampler=course.sampler,
        )
    except NotSaved as error:
        why = f"{error.what}: {error.known}"
        course.progress.event("notice", {"text": why})
        return why
    place: dict[str, Field] = {"path": str(course.checkpoint), "epoch": standing.epoch, "samples_seen": standing.samples}
    course.progress.event("checkpoint_saved", place)
    return None


def _no_better(course: Course, standing: Standing) -> str | None:
    """Why more epochs are of no use; None: they may be."""
    patience = course.options.patience
    if patience is None or course.eval_loader is None or standing.epoch >= course.options.epochs:
        return None
    since = no_better_since([epoch.evaluation for epoch in standing.history], course.options)
    return f"{course.options.watch} has not become better for {count_of(since, 'epoch')}" if since >= patience else None


def _closed(standing: Standing, evaluation: dict[str, float | None]) -> Standing:
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
        steps=standing.steps,
        history=(*standing.history, result),
    )


def _interrupted(number: int, course: Course, standing: Standing, not_saved: str | None) -> Interrupted:
    kept = course.checkpoint is not None and not_saved is None
    return Interrupted(
        number,
        f"stopped by {signal.Signals(number).name} in epoch {standing.epoch}, after step {standing.group}",
        known=_where_it_is(course, not_saved),
        try_="the same command with --resume" if kept else "--checkpoint FILE",
    )


def _where_it_is(course: Course, not_saved: str | None) -> str:
    if course.checkpoint is None:
        return "no checkpoint was asked for: nothing is kept"
    return not_saved or f"the checkpoint is {course.checkpoint}"


def _told(course: Course, standing: Standing, result: GroupResult, rate: float, wall_s: float) -> dict[str, Field]:
    memory = course.control.take_memory()
    return {
        "epoch": standing.epoch,
        "step": standing.group,
        "global_step": standing.steps,
        "samples": result.samples,
        "samples_seen": standing.samples,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": rate,
        "micro_batches": result.micro_batches,
        "micro_batch": result.largest,
        "predicted_bytes": round(memory.predicted_bytes) or None,
        "peak_bytes": memory.peak_bytes or None,
        "wall_s": wall_s,
        "samples_per_s": _rate(result.samples, wall_s),
        **({} if course.balancer is None else course.balancer.log()),
    }


def _fields(result: EpochResult) -> dict[str, Field]:
    measured = {"epoch": result.epoch, "loss": result.loss, "steps": result.steps, "samples_per_s": result.samples_per_s}
    return {**measured, **{f"eval_{name}": value for name, value in result.evaluation.items()}}


def _rate(samples: int, seconds: float) -> float:
    return samples / seconds if seconds > 0 else 0.0
