"""The training: epochs of exact groups within the plan, with evaluation, early stopping, recovery and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import IterableDataset

from batchcal.core.clock import Clock, SystemClock
from batchcal.core.errors import BatchcalError, UsageError
from batchcal.core.progress import Notice, Progress, Silent
from batchcal.core.units import count_of
from batchcal.plan.plan import Plan
from batchcal.runtime.accumulate import groups
from batchcal.runtime.group import GroupResult, Skip, run_group
from batchcal.train.checkpoints.checkpoint import Standing
from batchcal.train.checkpoints.lock import checkpoint_lock
from batchcal.train.ending.early_stopping import no_better_since
from batchcal.train.ending.failure import error_to_raise, interrupted
from batchcal.train.ending.skipped_steps import REASONS, nothing_trained
from batchcal.train.ending.stop_request import StopRequest
from batchcal.train.evaluate import evaluate_all
from batchcal.train.memory.predictor import MemoryPredictor
from batchcal.train.options import TrainOptions
from batchcal.train.result import EpochResult, TrainingResult
from batchcal.train.seed import seed_everything
from batchcal.train.training_setup import TrainingSetup, make_setup
from batchcal.values.training_events import EpochEnded, StepEnded, TrainingEnded, TrainingEvent
from batchcal.workload.model.optimizers import set_mode
from batchcal.workload.task import Task


def train(
    task: Task,
    plan: Plan,
    options: TrainOptions | None = None,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    predictor: MemoryPredictor | None = None,
    wish: StopRequest | None = None,
    progress: Progress[TrainingEvent] | None = None,
    clock: Clock | None = None,
) -> TrainingResult:
    """Train `task` within `plan`.

    Apply the plan before (`runtime.apply`), and seed before the task's factory makes its model (`seed_everything`): this function
    seeds each epoch again, from the seed and the epoch's number.

    A micro-batch that does not fit is run again, in halves if necessary. The input of the optimizer does not change. The plan's
    micro-batch is the upper bound; smaller ones are used while memory is short. The effective batch never changes.

    SIGINT and SIGTERM end the training after the current optimizer step, with a checkpoint, also if every process of a job gets
    them. A second signal ends it at once. A resumed run continues with the next sample of the same order. Without workers and in
    the same place, it ends with the same parameters as a run that was never stopped.

    Events: `training_started`, `step`, `recovered`, `resized`, `epoch_ended`, `checkpoint_saved`, `notice`, `training_ended`.

    Args:
        checkpoint: file that is written after every epoch, within one every `checkpoint_every_s`, and when the run is stopped.
        resume: continue from `checkpoint`, if it exists.
        predictor: predicts the memory of a batch, from the calibration. None: a straight line through the plan's peak.
        wish: stops the training from other code.

    Raises:
        UsageError: `resume` without `checkpoint`, a checkpoint that does not fit or that another run writes, data that makes no
            batch, or options that do not suit the task.
        NothingFits: memory ran out and no smaller batch can be run. The error names the checkpoint.
        UserCodeError: the task returned a value that is not a loss, weight or metric, the loss is NaN or infinite, or a
            DataLoader worker crashed.
        Interrupted: a signal ended the training. The error names the checkpoint.
        BatchcalError: another process killed a DataLoader worker.
    """
    if resume and checkpoint is None:
        raise UsageError("there is no checkpoint to resume from", try_="--checkpoint FILE --resume")
    setup = make_setup(
        task,
        plan,
        options or TrainOptions(),
        checkpoint=checkpoint,
        resume=resume,
        predictor=predictor,
        progress=progress or Silent(),
        clock=clock or SystemClock(),
    )
    start_s = setup.clock.monotonic()
    setup.peak.begin()
    setup.progress.event(setup.started(plan))
    with checkpoint_lock(checkpoint), wish or StopRequest() as stop_request, setup.control.monitor:
        end = _epochs(setup, stop_request)
    epochs = end.standing.history
    result = TrainingResult(
        epochs=epochs,
        samples_per_s=_rate(sum(epoch.samples for epoch in epochs), sum(epoch.wall_s for epoch in epochs)),
        peak_bytes=setup.host_peak.most_bytes(),
        accelerator_peak_bytes=None if setup.device.type == "cpu" else setup.peak.most_bytes(),
        wall_s=setup.clock.monotonic() - start_s,
        resumed_at_epoch=setup.first.epoch if setup.resumed else None,
        stopped_early=end.stop_reason is not None,
        stop_reason=end.stop_reason,
        recoveries=setup.control.recoveries,
        prediction_error=setup.control.prediction_error(),
        skipped_steps=sum(epoch.skipped_steps for epoch in epochs),
        checkpoint=None if setup.writer.saved is None else str(setup.writer.path),
        not_saved=setup.writer.problem,
    )
    setup.progress.event(
        TrainingEnded(
            samples_per_s=result.samples_per_s,
            peak_bytes=result.peak_bytes,
            wall_s=result.wall_s,
            stopped_early=result.stopped_early,
            stop_reason=result.stop_reason,
        )
    )
    return result


@dataclass(frozen=True)
class _TrainingEnd:
    """Progress of a training at its end."""

    standing: Standing
    stop_reason: str | None = None
    """Reason why it ended before the last epoch."""


def _epochs(setup: TrainingSetup, stop_request: StopRequest) -> _TrainingEnd:
    standing, writer = setup.first, setup.writer
    while standing.epoch < setup.options.epochs and not _at_last_step(setup, standing):
        if standing.samples == 0:
            seed_everything(setup.options.seed, standing.epoch)
        try:
            for next_standing in optimizer_steps(setup, standing, stop_request):
                standing = next_standing
                writer.save_when_due(standing)
            evaluation = _evaluation(setup, stop_request)
        except Exception as error:
            replacement = error_to_raise(error, setup, standing, stop_request)
            if replacement is None:
                raise
            raise replacement from error
        # A stop request during the evaluation leaves the epoch open: a resumed run evaluates it.
        closed = standing if stop_request.granted else _closed(standing, evaluation)
        notice = _short_stream(setup, standing)
        if notice and not stop_request.granted and not _at_last_step(setup, standing):
            setup.progress.event(Notice(notice))
        if not stop_request.granted:
            setup.progress.event(_epoch_ended(closed.history[-1]))
            no_training = _nothing_trained(setup, closed, standing.last_skip)
            if no_training is not None:
                raise no_training
        # The last step may be in the middle of an epoch: a run that resumes with more steps trains the rest of it.
        within = _at_last_step(setup, standing) and 0 < standing.samples < (standing.train_samples or math.inf)
        saved, standing = standing if within else closed, closed
        stop_reason = stop_request.reason or _no_better(setup, standing)
        stops = (
            stop_request.granted
            or stop_reason is not None
            or standing.epoch >= setup.options.epochs
            or _at_last_step(setup, standing)
        )
        writer.save(saved, last=stops)
        if stop_request.signal is not None:
            raise interrupted(stop_request.signal, setup, standing)
        if stop_reason:
            return _TrainingEnd(standing, stop_reason)
    # A resumed run may have no steps left, in the middle of an epoch.
    return _TrainingEnd(_closed(standing, {}) if standing.samples else standing)


def optimizer_steps(setup: TrainingSetup, standing: Standing, stop_request: StopRequest) -> Iterator[Standing]:
    """Run the remaining optimizer steps of the epoch, or until a stop request. Yield the progress of the training after each."""
    set_mode(setup.task, training=True)
    setup.control.begin_group()
    start_s = setup.clock.monotonic()
    for group in groups(setup.loader):
        rate = setup.rate.set(setup.trained(standing), group.samples or standing.effective_batch)
        setup.control.set_position(standing.epoch, standing.group + 1)
        result = run_group(
            setup.task,
            group.micro_batches,
            device=setup.device,
            scaler=setup.scaler,
            guard=setup.control,
            max_norm=setup.options.max_norm,
            samples=group.samples or standing.effective_batch,
        )
        if setup.balancer is not None and result.weight > 0:
            setup.balancer.after_step()
        if result.skipped is not None and result.skipped != standing.last_skip:
            setup.progress.event(Notice(f"the optimizer skipped a step: {REASONS[result.skipped]}"))
        end_s = setup.clock.monotonic()
        standing = standing.model_copy(
            update={
                "group": standing.group + 1,
                "steps": standing.steps + 1,
                "weighted_loss": standing.weighted_loss + result.loss * result.weight,
                "weight": standing.weight + result.weight,
                "samples": standing.samples + result.samples,
                "skipped": standing.skipped + (result.skipped is not None),
                "last_skip": result.skipped or standing.last_skip,
                "wall_s": standing.wall_s + end_s - start_s,
            }
        )
        setup.progress.event(_step_ended(setup, standing, result, rate, end_s - start_s))
        paused = setup.clock.monotonic()
        yield standing
        # The time of a checkpoint that was written meanwhile is not part of the next step.
        start_s = end_s + setup.clock.monotonic() - paused
        # The step is complete: a later error, also of the evaluation, does not come from it.
        setup.control.begin_group()
        # Before the next group is loaded, which may draw random numbers: a run that resumes from here loads it again.
        if stop_request.granted or _at_last_step(setup, standing):
            return


def _short_stream(setup: TrainingSetup, standing: Standing) -> str:
    """Return a notice about a stream that ended before its length. Empty: it did not."""
    expected, data = standing.train_samples, setup.task.train_data
    # Samples at the end that do not make a size that the task accepts are left out.
    dropped = 0 if setup.control.size_rule is None else standing.effective_batch
    if expected is None or not isinstance(data, IterableDataset) or standing.samples + dropped >= expected:
        return ""
    return (
        f"the stream {type(data).__name__} ended after {count_of(standing.samples, 'sample')}, but its length is {expected}: "
        "schedules, progress and --epochs use that length; correct __len__"
    )


def _at_last_step(setup: TrainingSetup, standing: Standing) -> bool:
    return setup.options.max_steps is not None and standing.steps >= setup.options.max_steps


def _nothing_trained(setup: TrainingSetup, closed: Standing, last_skip: Skip | None) -> BatchcalError | None:
    ended = closed.epoch >= setup.options.epochs or _at_last_step(setup, closed)
    skipped = sum(epoch.skipped_steps for epoch in closed.history)
    return nothing_trained(sum(epoch.steps for epoch in closed.history), skipped, last_skip, ended=ended)


def _evaluation(setup: TrainingSetup, stop_request: StopRequest) -> dict[str, float | None]:
    if setup.eval_loader is None or stop_request.granted:
        return {}
    means = evaluate_all(
        setup.evaluated,
        setup.eval_loader,
        device=setup.device,
        stop_request=stop_request,
        report=setup.control.evaluated_in_halves,
        size_rule=setup.control.size_rule,
    )
    return {name: mean if math.isfinite(mean) else None for name, mean in means.items()}


def _no_better(setup: TrainingSetup, standing: Standing) -> str | None:
    """Return the reason why more epochs do not help. None: they may help."""
    patience = setup.options.patience
    if patience is None or setup.eval_loader is None or standing.epoch >= setup.options.epochs:
        return None
    since = no_better_since([epoch.evaluation for epoch in standing.history], setup.options)
    return f"{setup.options.watch} has not improved for {count_of(since, 'epoch')}" if since >= patience else None


def _closed(standing: Standing, evaluation: dict[str, float | None]) -> Standing:
    """Close the epoch: add its result to the history, and begin the next epoch."""
    result = EpochResult(
        epoch=standing.epoch,
        loss=standing.weighted_loss / standing.weight if standing.weight else 0.0,
        evaluation=evaluation,
        steps=standing.group,
        samples=standing.samples,
        wall_s=standing.wall_s,
        samples_per_s=_rate(standing.samples, standing.wall_s),
        skipped_steps=standing.skipped,
    )
    return Standing(
        seed=standing.seed,
        effective_batch=standing.effective_batch,
        train_samples=standing.train_samples,
        epoch=standing.epoch + 1,
        group=0,
        steps=standing.steps,
        last_skip=standing.last_skip,
        history=(*standing.history, result),
    )


def _step_ended(setup: TrainingSetup, standing: Standing, result: GroupResult, rate: float | None, wall_s: float) -> StepEnded:
    memory = setup.control.take_memory()
    return StepEnded(
        epoch=standing.epoch,
        step=standing.group,
        global_step=standing.steps,
        samples=result.samples,
        samples_seen=standing.samples,
        loss=result.loss if result.weight else None,
        grad_norm=result.grad_norm,
        lr=rate,
        micro_batches=result.micro_batches,
        micro_batch=result.largest,
        predicted_bytes=round(memory.predicted_bytes) or None,
        peak_bytes=memory.peak_bytes or None,
        wall_s=wall_s,
        samples_per_s=_rate(result.samples, wall_s),
        skipped=result.skipped,
        of_tasks={} if setup.balancer is None else setup.balancer.log(),
    )


def _epoch_ended(result: EpochResult) -> EpochEnded:
    return EpochEnded(
        epoch=result.epoch,
        loss=result.loss,
        steps=result.steps,
        samples_per_s=result.samples_per_s,
        skipped_steps=result.skipped_steps or None,
        evaluation=result.evaluation,
    )


def _rate(samples: int, seconds: float) -> float:
    return samples / seconds if seconds > 0 else 0.0
