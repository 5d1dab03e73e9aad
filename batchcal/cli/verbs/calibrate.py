"""batchcal calibrate"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.flags import Flags, takes
from batchcal.cli.output.messages import Messages
from batchcal.values.settings import CalibrateSettings, PlanSettings

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
    dry_run: opt.DryRun = False,
    pipeline_only: opt.PipelineOnly = False,
    shape: opt.Shape = None,
    output: opt.Output = None,
    require_signature: opt.RequireSignature = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure the batch size that fits and the fastest settings, in fenced child processes, and write calibration.json."""
    import time

    from batchcal.cli.commands.calibration import Destination, calibrated, seen_now
    from batchcal.cli.invocation import open_invocation
    from batchcal.cli.output import stdout
    from batchcal.core.errors import UsageError
    from batchcal.measure.result import Need

    began_s = time.monotonic()
    voice = context.ensure_object(Messages)
    invocation = open_invocation(target, flags=flags, config=config, voice=voice)
    place = None if output is None else Path(output).absolute()
    if pipeline_only and dry_run:
        raise UsageError(
            "--pipeline-only and --dry-run contradict each other",
            known="--pipeline-only measures, --dry-run starts nothing",
            try_="--pipeline-only alone, or --dry-run alone",
        )
    if pipeline_only:
        _pipeline(invocation, place, voice, as_json=json)
        return
    from batchcal.cli.commands.shapes import parsed, shaped

    shapes = parsed(shape or ())
    need = Need(force=force, dry_run=dry_run, require_signature=require_signature)
    found = calibrated(invocation, need, voice, destination=Destination(place))
    if shapes and not dry_run and found.problem is None:
        found = shaped(invocation, found, shapes, voice, began_s=began_s)
    seen = seen_now(found)
    if not found.fresh:
        from batchcal.cli.views.calibration.refusal import limiting_error

        error = limiting_error(found.calibration)
        if error:
            voice.say(error)
    if json:
        from batchcal.cli.output.document import document

        stdout.emit(document(seen, measured=not found.fresh))
    else:
        from batchcal.cli.views.calibration.view import answer, remarks

        stdout.render([*answer(seen), *remarks(seen)])
    # The result is printed. Its problem follows, with the exit code.
    if found.problem is not None:
        raise found.problem
    if found.fresh:
        voice.say("a fresh calibration is there; --force measures again")
    elif not dry_run:
        voice.say(f"next: {', '.join(_next_commands(invocation, found.calibration, found.path))}")


def _next_commands(invocation: Invocation, calibration: Calibration, path: Path | None) -> tuple[str, str, str]:
    """Return commands that use the calibration. They name its file if they would not find it by themselves."""
    import os

    from batchcal.calibration.locate import SeveralCalibrations, find_calibration
    from batchcal.plan.effective_batch import unset_remark

    spec = quote(calibration.task.spec)
    wanted = " --effective-batch N" if unset_remark(calibration) else ""
    try:
        is_found = path is None or find_calibration(invocation.directory, os.environ).path.absolute() == path.absolute()
    except SeveralCalibrations:
        is_found = False
    file = "" if is_found or path is None else quote(os.path.relpath(path, invocation.directory))
    return (
        f"batchcal show {file}".rstrip(),
        f"batchcal plan{wanted}{f' --calibration {file}' if file else ''}",
        f"batchcal train {spec}{wanted}",
    )


def _pipeline(invocation: Invocation, output: Path | None, voice: Messages, *, as_json: bool) -> None:
    import os

    from batchcal.calibration.place import check_explicit
    from batchcal.cli.commands.pipeline import keep, pipelined
    from batchcal.cli.output import stdout

    check_explicit(Path(invocation.task().directory), os.environ, output)
    result = pipelined(invocation, voice)
    if as_json:
        stdout.emit(result.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.calibration.pipeline import show

        stdout.render(show(result))
    keep(invocation, result, output, voice)
