"""batchcal exec"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from pathlib import Path

    from batchcal.cli.desk import Desk


def execute(
    context: typer.Context,
    command: opt.Command,
    *,
    on_stale: opt.OnStale = "fail",
    effective_batch: opt.EffectiveBatch = None,
    objective: opt.Objective = None,
    world_size: opt.WorldSize = 1,
    calibration: opt.Calibration = None,
    config: opt.Config = None,
    device: opt.Device = None,
    allocator: opt.Allocator = None,
    require_signature: opt.RequireSignature = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Start a command inside the plan: threads, allocator and BATCHCAL_PLAN_* are set, then the command takes this process."""
    import os
    from pathlib import Path

    from batchcal.calibration.store import existing_path
    from batchcal.cli.desk import open_desk
    from batchcal.cli.planning import open_here, plan_of
    from batchcal.core.errors import NoCalibration
    from batchcal.guard.allocator import resolve
    from batchcal.plan.formats import PREFIX, as_lines, variables
    from batchcal.runtime.become import become

    flags = {"effective_batch": effective_batch, "objective": objective, "device": device, "allocator": allocator}
    voice = context.ensure_object(Voice)
    desk = open_desk(None, flags=flags, config=config, voice=voice)
    path = (existing_path(Path.cwd(), os.environ) if calibration is None else Path(calibration)).absolute()
    # Those of an earlier plan would be taken for this one's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    try:
        if on_stale == "recalibrate":
            _calibrate(desk, path, require_signature=require_signature, voice=voice)
        opened = open_here(path, require_signature=require_signature)
        plan = plan_of(opened, desk.settings, world_size=world_size, device=device, allocator=allocator)
    except NoCalibration as error:
        if on_stale != "default":
            raise
        voice.say(f" note: {error.what}; {command[0]} is started as it is, without a plan")
    else:
        policy = resolve(plan.allocator)
        environment = policy.process_environment(environment)
        environment |= variables(plan, policy.environment(environment)) | {"BATCHCAL_CALIBRATION": str(path)}
        for line in (*(f" note: {notice}" for notice in plan.notices), *as_lines(plan)):
            voice.say(line)
    become(command, environment)


def _calibrate(desk: Desk, path: Path, *, require_signature: bool, voice: Voice) -> None:
    """Has a fresh calibration at `path`: of the project's task, else of the one that was calibrated there.

    Raises:
        BatchcalError: it was not made, not verified, or could not be saved.
    """
    import os
    from dataclasses import replace

    from batchcal.calibration.keys import find_trust
    from batchcal.calibration.store import Loaded, load
    from batchcal.cli.calibrating import Wish, calibrated
    from batchcal.workload.reference import TaskReference

    if desk.reference is None:
        there = load(path, trust=find_trust(os.environ))
        if isinstance(there, Loaded):
            task = there.calibration.task
            desk = replace(desk, reference=TaskReference(spec=task.spec, directory=str(desk.directory), arguments=task.arguments))
    found = calibrated(desk, Wish(output=path, require_signature=require_signature, as_before=True), voice)
    if found.problem is not None:
        raise found.problem
