"""batchcal train"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from batchcal.cli import options as opt
from batchcal.cli.commands.calibration import Destination, obtain_calibration
from batchcal.cli.commands.checkpoints import choose
from batchcal.cli.commands.training import options_of, run_training
from batchcal.cli.commands.valid_calibration import ValidCalibration, plan_of
from batchcal.cli.flags import Flags, takes
from batchcal.cli.invocation import open_invocation
from batchcal.cli.output import stdout
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import NotSaved, UsageError
from batchcal.core.readers import OFF
from batchcal.detect.detect import detect
from batchcal.measure.result import Need
from batchcal.train.report.jsonl import check_log
from batchcal.values.settings import CalibrateSettings, PlanSettings, TrainSettings

if TYPE_CHECKING:
    from batchcal.cli.invocation import Invocation
    from batchcal.measure.result import CalibrationResult
    from batchcal.plan.plan import Plan

RENAMED: Final = {"samples": "--calibration-samples"}
"""Flags with other names in `train`. `--samples` would be understood as a number of training samples."""


@takes(
    TrainSettings.epochs,
    TrainSettings.max_steps,
    *PlanSettings.options(),
    CalibrateSettings.samples,
    CalibrateSettings.margin,
    CalibrateSettings.memory_limit,
    CalibrateSettings.max_batch,
    CalibrateSettings.time_limit,
    CalibrateSettings.device,
    CalibrateSettings.allocator,
    CalibrateSettings.activation_checkpointing,
    CalibrateSettings.workers,
    CalibrateSettings.seed,
    TrainSettings.checkpoint,
    TrainSettings.checkpoint_every,
    TrainSettings.drop_last,
    TrainSettings.log,
    TrainSettings.patience,
    TrainSettings.start_micro_batch,
    TrainSettings.on_oom,
    renamed=RENAMED,
)
def train(
    context: typer.Context,
    target: opt.Target = None,
    *,
    config: opt.Config = None,
    flags: Flags,
    calibrate: opt.Calibrate = True,
    force_calibration: opt.ForceCalibration = False,
    no_checkpoint: opt.NoCheckpoint = False,
    resume: opt.Resume = False,
    output: opt.Output = None,
    require_signature: opt.RequireSignature = False,
    require_settled: opt.RequireSettled = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run `batchcal train`."""
    if no_checkpoint and (flags["checkpoint"] is not None or resume):
        conflict = "--resume" if resume else "--checkpoint"
        raise UsageError(f"--no-checkpoint contradicts {conflict}", try_=f"--no-checkpoint alone, or {conflict} alone")
    if no_checkpoint:
        flags["checkpoint"] = OFF
    messages = context.ensure_object(Messages)
    invocation = open_invocation(target, flags=flags, flag_names=RENAMED, config=config, messages=messages)
    need = Need(
        rehearsed=False,
        needs_effective_batch=True,
        may_measure=calibrate or force_calibration,
        # A process that has restarted itself for the plan's allocator has calibrated already.
        force=force_calibration and not _was_restarted(),
        require_signature=require_signature,
        require_settled=require_settled,
    )
    checkpoint = choose(invocation, resume=resume, messages=messages)
    # Invalid settings are reported before anything is measured.
    invocation.settings.check(PlanSettings)
    invocation.settings.check(TrainSettings)
    log = invocation.settings.train.log
    if log is not None:
        check_log(Path(log))
    place = None if output is None else Path(output).absolute()
    calibration_result = obtain_calibration(invocation, need, messages, destination=Destination(place), reuse_options=True)
    if isinstance(calibration_result.problem, NotSaved):
        messages.print(f" note: {calibration_result.problem.what}; the training continues, and the next run measures again")
    elif calibration_result.problem is not None:
        raise calibration_result.problem
    plan = _plan(invocation, calibration_result)
    measured_options = calibration_result.calibration.options
    options = options_of(
        invocation.settings, margin=measured_options.margin, memory_limit_bytes=measured_options.memory_limit_bytes
    )
    result = run_training(invocation, plan, calibration_result, lambda _: options, checkpoint=checkpoint, messages=messages)
    if json:
        stdout.emit(result.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.run.result import show

        stdout.render(show(result, plan))
    if result.not_saved is not None:
        raise NotSaved(result.not_saved, try_=checkpoint.try_instead)


def _was_restarted() -> bool:
    from batchcal.runtime.apply import REEXEC_VARIABLE

    return os.environ.get(REEXEC_VARIABLE, "").startswith(f"{os.getpid()}:")


def _plan(invocation: Invocation, calibration_result: CalibrationResult) -> Plan:
    return plan_of(
        ValidCalibration(calibration=calibration_result.calibration, environment=detect(), notices=calibration_result.notices),
        invocation.settings,
    )
