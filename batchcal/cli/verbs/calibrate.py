"""batchcal calibrate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from batchcal.cli.desk import Desk


def calibrate(
    context: typer.Context,
    target: opt.Target = None,
    *,
    config: opt.Config = None,
    margin: opt.Margin = None,
    headroom: opt.Headroom = None,
    memory_limit: opt.MemoryLimit = None,
    max_batch: opt.MaxBatch = None,
    multiple_of: opt.MultipleOf = None,
    time_limit: opt.TimeLimit = None,
    max_probes: opt.MaxProbes = None,
    samples: opt.Samples = None,
    device: opt.Device = None,
    allocator: opt.Allocator = None,
    activation_checkpointing: opt.ActivationCheckpointing = None,
    workers: opt.Workers = None,
    effective_batch: opt.EffectiveBatch = None,
    objective: opt.Objective = None,
    seed: opt.Seed = None,
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
    """Measure what fits here and what trains fastest, in fenced child processes, and write calibration.json."""
    from batchcal.cli import screen
    from batchcal.cli.calibrating import Wish, calibrated, seen_now
    from batchcal.cli.desk import open_desk
    from batchcal.core.errors import UsageError

    flags = {
        "margin": margin,
        "headroom": headroom,
        "memory_limit": memory_limit,
        "max_batch": max_batch,
        "multiple_of": multiple_of,
        "time_limit": time_limit,
        "max_probes": max_probes,
        "samples": samples,
        "device": device,
        "allocator": allocator,
        "activation_checkpointing": activation_checkpointing,
        "workers": workers,
        "effective_batch": effective_batch,
        "objective": objective,
        "seed": seed,
    }
    voice = context.ensure_object(Voice)
    desk = open_desk(target, flags=flags, config=config, voice=voice)
    place = None if output is None else Path(output).absolute()
    if pipeline_only and dry_run:
        raise UsageError("--pipeline-only measures or does nothing", known="--dry-run would start nothing", try_="one of them")
    if pipeline_only:
        _pipeline(desk, place, voice, as_json=json)
        return
    from batchcal.cli.shaping import parsed, shaped

    shapes = parsed(shape or ())
    wish = Wish(
        output=place,
        force=force,
        dry_run=dry_run,
        require_signature=require_signature,
    )
    found = calibrated(desk, wish, voice)
    if shapes and not dry_run and found.problem is None:
        found = shaped(desk, found, shapes, voice)  # what is wrong with it is told with the result, below
    seen = seen_now(found)
    if json:
        from batchcal.cli.document import document

        screen.emit(document(seen, measured=found.measured))
    else:
        from batchcal.cli.views.calibration import answer, remarks

        screen.render([*answer(seen), *remarks(seen)])
    # The result is out: what is wrong with it comes now, with its exit code.
    if found.problem is not None:
        raise found.problem
    if not found.measured:
        voice.say("a fresh calibration is there; --force measures again")
    elif not dry_run:
        voice.say("next: batchcal show, batchcal plan --effective-batch N, batchcal train TARGET")


def _pipeline(desk: Desk, output: Path | None, voice: Voice, *, as_json: bool) -> None:
    from batchcal.cli import screen
    from batchcal.cli.pipelining import keep, pipelined

    result = pipelined(desk, voice)
    if as_json:
        screen.emit(result.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.pipeline import show

        screen.render(show(result))
    keep(desk, result, output, voice)
