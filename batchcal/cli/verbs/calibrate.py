"""batchcal calibrate"""

from __future__ import annotations

import os
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import typer

from batchcal.calibration.locate import SeveralCalibrations, find_calibration
from batchcal.calibration.place import check_explicit
from batchcal.cli import options as opt
from batchcal.cli.commands.calibration import Destination, current_view, obtain_calibration
from batchcal.cli.commands.observation import lines_of, observe
from batchcal.cli.commands.pipeline import measure_pipeline, save_result
from batchcal.cli.commands.shapes import add_shapes, parse_shapes
from batchcal.cli.flags import Flags, takes
from batchcal.cli.invocation import open_invocation
from batchcal.cli.output import stdout
from batchcal.cli.output.document import document
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import UsageError
from batchcal.measure.result import Need
from batchcal.plan.effective_batch import unset_remark
from batchcal.values.settings import CalibrateSettings, PlanSettings
from batchcal.workload.command.template import BATCH_SIZE, template_of

if TYPE_CHECKING:
    from batchcal.calibration.schema import Calibration
    from batchcal.cli.invocation import Invocation


@takes(*CalibrateSettings.options(), *PlanSettings.options())
def calibrate(
    context: typer.Context,
    target: opt.Target = None,
    *,
    config: opt.Config = None,
    flags: Flags,
    force: opt.Force = False,
    attribute: opt.Attribute = False,
    dry_run: opt.DryRun = False,
    pipeline_only: opt.PipelineOnly = False,
    shape: opt.Shape = None,
    output: opt.Output = None,
    require_signature: opt.RequireSignature = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run `batchcal calibrate`."""
    start_s = time.monotonic()
    messages = context.ensure_object(Messages)
    if messages.command is not None:
        _check_command_options(target, pipeline_only=pipeline_only, shape=shape, attribute=attribute, dry_run=dry_run)
    invocation = open_invocation(target, flags=flags, config=config, messages=messages, command=messages.command)
    place = None if output is None else Path(output).absolute()
    placeholders = () if messages.command is None else template_of(messages.command).placeholders
    if placeholders and BATCH_SIZE not in placeholders:
        raise UsageError(
            f"the command has {{{placeholders[0]}}}, but no {{batch_size}}",
            known="the samples per forward pass are what a calibration measures first",
            try_="{batch_size} where the command sets its batch size; or a command without placeholders, to observe it as it is",
        )
    if messages.command is not None and not placeholders:
        _observe(invocation, messages, as_json=json)
        return
    if pipeline_only and dry_run:
        raise UsageError(
            "--pipeline-only and --dry-run contradict each other",
            known="--pipeline-only measures, --dry-run starts nothing",
            try_="--pipeline-only alone, or --dry-run alone",
        )
    if pipeline_only:
        _pipeline(invocation, place, messages, as_json=json)
        return

    shapes = parse_shapes(shape or ())
    need = Need(force=force, dry_run=dry_run, require_signature=require_signature, by_setting=attribute)
    result = obtain_calibration(invocation, need, messages, destination=Destination(place))
    if shapes and not dry_run and result.problem is None:
        result = add_shapes(invocation, result, shapes, messages, start_s=start_s)
    view = current_view(result)
    if not result.fresh:
        from batchcal.cli.views.calibration.refusal import limiting_error

        error = limiting_error(result.calibration)
        if error:
            messages.print(error)
    if json:
        stdout.emit(document(view, measured=not result.fresh))
    else:
        from batchcal.cli.views.calibration.view import answer, remarks

        stdout.render([*answer(view), *remarks(view)])
    # The result is printed. Its problem follows, with the exit code.
    if result.problem is not None:
        raise result.problem
    if result.fresh:
        messages.print("the existing calibration is still valid; --force measures again")
    elif not dry_run:
        messages.print(f"next: {', '.join(_next_commands(invocation, result.calibration, result.path))}")


def _next_commands(invocation: Invocation, calibration: Calibration, path: Path | None) -> tuple[str, str, str]:
    """Return commands that use the calibration. They name its file if they would not find it by themselves."""
    spec = calibration.task.spec if calibration.command is not None else quote(calibration.task.spec)
    flag = " --effective-batch N" if unset_remark(calibration) else ""
    try:
        is_default = path is None or find_calibration(invocation.directory, os.environ).path.absolute() == path.absolute()
    except SeveralCalibrations:
        is_default = False
    file = "" if is_default or path is None else quote(os.path.relpath(path, invocation.directory))
    return (
        f"batchcal show {file}".rstrip(),
        f"batchcal plan{flag}{f' --calibration {file}' if file else ''}",
        f"batchcal train {spec}{flag}" if calibration.command is None else f"batchcal exec{flag} {spec}",
    )


def _observe(invocation: Invocation, messages: Messages, *, as_json: bool) -> None:
    """Run a command once as it is, and print what was observed. Nothing is chosen, and no file is written."""
    observed = observe(invocation)
    stdout.emit(observed.model_dump_json(indent=2) if as_json else "\n".join(lines_of(observed)))
    template = observed.with_placeholder()
    if template:
        messages.print(f"next: batchcal calibrate -- {template}")


def _check_command_options(
    target: str | None, *, pipeline_only: bool, shape: list[str] | None, attribute: bool, dry_run: bool
) -> None:
    """Refuse arguments that need a task.

    Raises:
        UsageError: one is given.
    """
    if target is not None:
        raise UsageError(
            f"both a task ({target}) and a command are given",
            known="the words after -- are a command that is measured instead of a task",
            try_=f"batchcal calibrate {quote(target)}, or the command alone after --",
        )
    flags = {"--pipeline-only": pipeline_only, "--shape": bool(shape), "--attribute": attribute, "--dry-run": dry_run}
    for flag, is_given in flags.items():
        if is_given:
            raise UsageError(
                f"{flag} cannot be used with a command",
                known="it needs the parts of the training, which only a task gives",
                try_=f"leave out {flag}, or a task: batchcal calibrate train.py:task {flag}",
            )


def _pipeline(invocation: Invocation, output: Path | None, messages: Messages, *, as_json: bool) -> None:
    check_explicit(Path(invocation.task().directory), os.environ, output)
    result = measure_pipeline(invocation, messages)
    if as_json:
        stdout.emit(result.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.calibration.pipeline import show

        stdout.render(show(result))
    save_result(invocation, result, output, messages)
