"""batchcal train"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from batchcal.cli.calibrating import Found
    from batchcal.cli.desk import Desk
    from batchcal.plan.plan import Plan


def train(
    context: typer.Context,
    target: opt.Target = None,
    *,
    config: opt.Config = None,
    epochs: opt.Epochs = None,
    effective_batch: opt.EffectiveBatch = None,
    objective: opt.Objective = None,
    calibrate: opt.Calibrate = True,
    force_calibration: opt.ForceCalibration = False,
    calibration_samples: opt.CalibrationSamples = None,
    margin: opt.Margin = None,
    memory_limit: opt.MemoryLimit = None,
    max_batch: opt.MaxBatch = None,
    time_limit: opt.TimeLimit = None,
    device: opt.Device = None,
    allocator: opt.Allocator = None,
    activation_checkpointing: opt.ActivationCheckpointing = None,
    workers: opt.Workers = None,
    seed: opt.Seed = None,
    checkpoint: opt.Checkpoint = None,
    checkpoint_every: opt.CheckpointEvery = None,
    resume: opt.Resume = False,
    drop_last: opt.DropLast = False,
    log: opt.Log = None,
    patience: opt.Patience = None,
    start_micro_batch: opt.StartMicroBatch = None,
    on_oom: opt.OnOom = None,
    output: opt.Output = None,
    require_signature: opt.RequireSignature = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Train with the plan of the calibration; calibrate first where there is no fresh one."""
    from batchcal.cli import screen
    from batchcal.cli.calibrating import Wish, calibrated
    from batchcal.cli.desk import objective_of, open_desk
    from batchcal.cli.training import options_of, trained
    from batchcal.core import settings as knobs
    from batchcal.core.errors import NotSaved, UsageError

    flags = {
        "epochs": epochs,
        "effective_batch": effective_batch,
        "objective": objective,
        "samples": calibration_samples,
        "margin": margin,
        "memory_limit": memory_limit,
        "max_batch": max_batch,
        "time_limit": time_limit,
        "device": device,
        "allocator": allocator,
        "activation_checkpointing": activation_checkpointing,
        "workers": workers,
        "seed": seed,
        "checkpoint": checkpoint,
        "checkpoint_every": checkpoint_every,
        "drop_last": "true" if drop_last else None,
        "log": log,
        "patience": patience,
        "start_micro_batch": start_micro_batch,
        "on_oom": on_oom,
    }
    voice = context.ensure_object(Voice)
    desk = open_desk(target, flags=flags, spelled={"samples": "--calibration-samples"}, config=config, voice=voice)
    wish = Wish(
        output=None if output is None else Path(output).absolute(),
        # What has started itself anew for the plan's allocator has calibrated already.
        force=force_calibration and not _was_restarted(),
        require_signature=require_signature,
        may_measure=calibrate or force_calibration,
        as_before=True,
    )
    if resume and desk.settings.value(knobs.CHECKPOINT) is None:
        raise UsageError("there is no checkpoint to resume from", try_="--checkpoint FILE --resume")
    # What cannot be is told before anything is measured.
    for knob in knobs.KNOBS:
        if knob.table == "train":
            desk.settings.value(knob)
    objective_of(desk.settings.value(knobs.OBJECTIVE))
    found = calibrated(desk, wish, voice)
    if isinstance(found.problem, NotSaved):
        voice.say(f" note: {found.problem.what}; training goes on, the next one will measure again")
    elif found.problem is not None:
        raise found.problem
    plan = _plan(desk, found)
    options = options_of(desk.settings, margin=found.calibration.options.margin)
    result = trained(desk, plan, found, lambda _: options, resume=resume, voice=voice)
    if json:
        screen.emit(result.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.training import show

        screen.render(show(result, plan))
    if result.not_saved is not None:
        raise NotSaved(result.not_saved, try_="--checkpoint FILE, on a disk with room")


def _was_restarted() -> bool:
    import os

    from batchcal.runtime.apply import REEXEC_VARIABLE

    return os.environ.get(REEXEC_VARIABLE, "").startswith(f"{os.getpid()}:")


def _plan(desk: Desk, found: Found) -> Plan:
    from batchcal.cli.planning import Opened, plan_of
    from batchcal.detect.detect import detect

    return plan_of(Opened(calibration=found.calibration, here=detect(), notices=found.notices), desk.settings)
