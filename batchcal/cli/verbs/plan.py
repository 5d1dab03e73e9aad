"""batchcal plan"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.commands.valid_calibration import allocator_of, device_of, open_valid, plan_of
from batchcal.cli.flags import Flags, takes
from batchcal.cli.invocation import open_invocation
from batchcal.cli.output import stdout
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import UsageError
from batchcal.core.units import parse_size
from batchcal.machine.allocator import resolve
from batchcal.plan.formats import as_dotenv, as_sh
from batchcal.plan.plan import FORMAT
from batchcal.plan.shapes import predict_shapes
from batchcal.plan.what_if import what_if as predict
from batchcal.values.settings import CalibrateSettings, PlanSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from batchcal.core.values import Record
    from batchcal.plan.plan import Plan
    from batchcal.plan.shapes import ShapePrediction
    from batchcal.plan.what_if import Prediction


@takes(*PlanSettings.options(), CalibrateSettings.device, CalibrateSettings.allocator)
def plan(
    context: typer.Context,
    *,
    flags: Flags,
    world_size: opt.WorldSize = 1,
    what_if: opt.WhatIf = None,
    shapes: opt.Shapes = False,
    calibration: opt.Calibration = None,
    config: opt.Config = None,
    format: opt.Format = None,  # noqa: A002 - the option's name
    require_signature: opt.RequireSignature = False,
    require_settled: opt.RequireSettled = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run `batchcal plan`."""
    style = _style(format, as_json=json)
    messages = context.ensure_object(Messages)
    invocation = open_invocation(None, flags=flags, config=config, messages=messages)
    settings = invocation.settings
    settings.check(PlanSettings)
    valid = open_valid(invocation.locate(calibration), require_signature=require_signature, require_settled=require_settled)
    if what_if is not None:
        device = device_of(valid, settings)
        allocator = allocator_of(settings)
        predictions = predict(
            valid.calibration, _sizes(what_if), effective_batch=settings.plan.effective_batch, device=device, allocator=allocator
        )
        _emit_predictions(predictions, style)
        return
    plan = plan_of(valid, settings, world_size=world_size, needs_effective_batch=style != "table" and not shapes)
    if not shapes:
        _emit(plan, style, messages)
    if shapes or (valid.calibration.shapes and style == "table"):
        predicted = predict_shapes(
            valid.calibration, effective_batch=plan.effective_batch, device=plan.device, allocator=plan.allocator
        )
        _emit_shapes(predicted, style)


def _style(style: opt.PlanFormat | None, *, as_json: bool) -> opt.PlanFormat:
    if as_json and style not in (None, "json"):
        raise UsageError(f"--json and --format {style} contradict each other", try_=f"--json alone, or --format {style} alone")
    return "json" if as_json else style or "table"


def _sizes(text: str) -> list[int]:
    try:
        return [parse_size(part, name="what-if") for part in text.split(",")]
    except UsageError as error:
        raise UsageError(f"--{error.what}", known=error.known, try_=error.try_) from None


def _emit(plan: Plan, style: opt.PlanFormat, messages: Messages) -> None:
    from batchcal.plan.formats import as_json

    if style == "json":
        stdout.emit(as_json(plan))
        return
    if style == "table":
        from batchcal.cli.views.calibration.plan import show

        stdout.render(show(plan))
        return
    variables = resolve(plan.allocator).environment(os.environ)
    stdout.emit(as_sh(plan, variables) if style == "sh" else as_dotenv(plan, variables))
    for notice in plan.notices:
        messages.print(f" note: {notice}")


def _emit_shapes(predictions: Sequence[ShapePrediction], style: opt.PlanFormat) -> None:
    from batchcal.cli.views.calibration.shapes import show

    _emit_predicted("shapes", predictions, show(predictions), style)


def _emit_predictions(predictions: Sequence[Prediction], style: opt.PlanFormat) -> None:
    from batchcal.cli.views.calibration.plan import show_predictions

    _emit_predicted("what-if", predictions, show_predictions(predictions), style)


def _emit_predicted(kind: str, predictions: Sequence[Record], view: Iterable[RenderableType], style: opt.PlanFormat) -> None:
    """Print predictions of one kind. `kind` is also the name of the flag that requested them."""
    import json

    if style == "json":
        items = [prediction.model_dump(mode="json") for prediction in predictions]
        stdout.emit(json.dumps({"format": FORMAT, "kind": kind, "predictions": items}, indent=2))
    elif style == "table":
        stdout.render(view)
    else:
        raise UsageError(
            f"--{kind} cannot be printed as {style}", known="a prediction is not a plan for a training", try_="--format json"
        )
