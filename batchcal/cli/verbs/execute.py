"""batchcal exec"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from batchcal.calibration.keys import find_trust
from batchcal.calibration.locate import Located, SeveralCalibrations
from batchcal.calibration.store import Loaded, load
from batchcal.cli import options as opt
from batchcal.cli.commands.calibration import Destination, obtain_calibration
from batchcal.cli.commands.valid_calibration import open_valid, plan_of
from batchcal.cli.flags import Flags, takes
from batchcal.cli.invocation import open_invocation
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import NoCalibration, UsageError
from batchcal.machine.allocator import resolve
from batchcal.measure.result import Need
from batchcal.plan.command_values import values_of
from batchcal.plan.formats import PREFIX, as_lines, variables
from batchcal.runtime.exec import check_startable, replace_process
from batchcal.values.settings import CalibrateSettings, PlanSettings
from batchcal.workload.command.template import SCRATCH, Template, template_of
from batchcal.workload.spec.reference import TaskReference

if TYPE_CHECKING:
    from pathlib import Path

    from batchcal.calibration.schema import Calibration
    from batchcal.cli.invocation import Invocation


@takes(*PlanSettings.options(), CalibrateSettings.device, CalibrateSettings.allocator)
def execute(
    context: typer.Context,
    command: opt.Command,
    *,
    on_stale: opt.OnStale = "fail",
    flags: Flags,
    world_size: opt.WorldSize = 1,
    calibration: opt.Calibration = None,
    config: opt.Config = None,
    require_signature: opt.RequireSignature = False,
    require_settled: opt.RequireSettled = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run `batchcal exec`."""
    messages = context.ensure_object(Messages)
    template = template_of(command, is_measured=False)
    check_startable(template.argv, os.environ)
    planned = template.words if template.placeholders else None
    invocation = open_invocation(None, flags=flags, config=config, messages=messages, command=planned)
    # Variables of an earlier plan would be mistaken for those of this plan.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    try:
        located = invocation.locate(calibration)
        if on_stale == "recalibrate":
            file = None if calibration is None or located.reference is not None else located.path.absolute()
            need = Need(
                rehearsed=False,
                needs_effective_batch=True,
                require_signature=require_signature,
                require_settled=require_settled,
            )
            located = _calibrate(invocation, located, file, need, messages=messages)
        valid = open_valid(located, require_signature=require_signature, require_settled=require_settled)
        if planned is not None:
            _check_same_command(valid.calibration, template)
        plan = plan_of(valid, invocation.settings, world_size=world_size)
    except (NoCalibration, SeveralCalibrations) as error:
        if on_stale != "default":
            raise
        if planned is not None:
            raise UsageError(
                "the command has placeholders, and without a plan they have no values",
                known=f"{error.what} ({error.known})" if error.known else error.what,
                try_=f"batchcal calibrate -- {template.text}",
            ) from None
        why = f"{error.what} ({error.known})" if error.known else error.what
        messages.print(f" note: {why}; {command[0]} starts without a plan")
    else:
        policy = resolve(plan.allocator)
        environment = policy.process_environment(environment)
        environment |= variables(plan, policy.environment(environment)) | {"BATCHCAL_CALIBRATION": str(located.path.absolute())}
        scratch = tempfile.mkdtemp(prefix="batchcal-scratch-") if SCRATCH in template.placeholders else ""
        template = template.filled(values_of(plan) | {SCRATCH: scratch})
        for line in (*(f" note: {notice}" for notice in plan.notices), *as_lines(plan)):
            messages.print(line)
    messages.release()
    replace_process(template.argv, environment | template.variables())


def _check_same_command(calibration: Calibration, template: Template) -> None:
    """Check that the calibration was made for this command line: the values of another one would be wrong.

    Raises:
        NoCalibration: it was not.
    """
    if calibration.command is None or calibration.command.words != template.masked:
        raise NoCalibration(
            "the calibration was made for another command",
            known=f"it is for {calibration.task.spec.removeprefix('-- ')}",
            try_=f"batchcal calibrate -- {template.text}",
        )


def _calibrate(invocation: Invocation, located: Located, file: Path | None, need: Need, *, messages: Messages) -> Located:
    """Return a valid calibration: of the named task, else of the project's task, else of the task that was calibrated there.

    Args:
        file: the file to write. None: the file of the task.

    Raises:
        BatchcalError: the calibration was not made, not verified, or could not be saved.
    """
    invocation = replace(invocation, reference=located.reference or invocation.reference)
    if invocation.reference is None:
        stored = load(located.path, trust=find_trust(os.environ))
        if isinstance(stored, Loaded):
            task = stored.calibration.task
            invocation = replace(
                invocation, reference=TaskReference(spec=task.spec, directory=str(invocation.directory), arguments=task.arguments)
            )
    result = obtain_calibration(invocation, need, messages, destination=Destination(file, "--calibration"), reuse_options=True)
    if result.problem is not None:
        raise result.problem
    return Located(result.path or located.path, invocation.reference)
