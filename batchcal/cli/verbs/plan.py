"""batchcal plan"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.voice import Voice

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from batchcal.core.values import Record
    from batchcal.plan.plan import Plan
    from batchcal.plan.shapes import ShapePrediction
    from batchcal.plan.what_if import Prediction


def plan(
    context: typer.Context,
    *,
    effective_batch: opt.EffectiveBatch = None,
    objective: opt.Objective = None,
    world_size: opt.WorldSize = 1,
    what_if: opt.WhatIf = None,
    shapes: opt.Shapes = False,
    calibration: opt.Calibration = None,
    config: opt.Config = None,
    device: opt.Device = None,
    allocator: opt.Allocator = None,
    format: opt.Format = None,  # noqa: A002 - the option's name
    require_signature: opt.RequireSignature = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Exact settings for an effective batch, from the calibration: sizes, workers, threads, allocator."""
    from batchcal.cli.desk import objective_of, open_desk
    from batchcal.cli.planning import allocator_of, device_of, open_here, plan_of
    from batchcal.core import settings as knobs

    style = _style(format, as_json=json)
    voice = context.ensure_object(Voice)
    flags = {"effective_batch": effective_batch, "objective": objective, "device": device, "allocator": allocator}
    settings = open_desk(None, flags=flags, config=config, voice=voice).settings
    wished = settings.value(knobs.EFFECTIVE_BATCH)
    objective_of(settings.value(knobs.OBJECTIVE))
    opened = open_here(calibration, require_signature=require_signature)
    if what_if is not None:
        from batchcal.plan.what_if import what_if as predict

        on = device_of(opened, device)
        of = allocator_of(allocator)
        found = predict(opened.calibration, _sizes(what_if), effective_batch=wished, device=on, allocator=of)
        _emit_predictions(found, style)
        return
    plan = plan_of(opened, settings, world_size=world_size, device=device, allocator=allocator)
    if not shapes:
        _emit(plan, style, voice)
    if shapes or (opened.calibration.shapes and style == "table"):
        from batchcal.plan.shapes import predict_shapes

        predicted = predict_shapes(
            opened.calibration, effective_batch=plan.effective_batch, device=plan.device, allocator=plan.allocator
        )
        _emit_shapes(predicted, style)


def _style(style: opt.PlanFormat | None, *, as_json: bool) -> opt.PlanFormat:
    from batchcal.core.errors import UsageError

    if as_json and style not in (None, "json"):
        raise UsageError(f"--json and --format {style} contradict each other", try_="one of them")
    return "json" if as_json else style or "table"


def _sizes(text: str) -> list[int]:
    from batchcal.core.units import parse_size

    return [parse_size(part, name="what-if") for part in text.split(",")]


def _emit(plan: Plan, style: opt.PlanFormat, voice: Voice) -> None:
    import os

    from batchcal.cli import screen
    from batchcal.guard.allocator import resolve
    from batchcal.plan.formats import as_dotenv, as_json, as_sh

    if style == "json":
        screen.emit(as_json(plan))
        return
    if style == "table":
        from batchcal.cli.views.plan import show

        screen.render(show(plan))
        return
    variables = resolve(plan.allocator).environment(os.environ)
    screen.emit(as_sh(plan, variables) if style == "sh" else as_dotenv(plan, variables))
    for notice in plan.notices:
        voice.say(f" note: {notice}")


def _emit_shapes(predictions: Sequence[ShapePrediction], style: opt.PlanFormat) -> None:
    from batchcal.cli.views.shapes import show

    _emit_predicted("shapes", predictions, show(predictions), style)


def _emit_predictions(predictions: Sequence[Prediction], style: opt.PlanFormat) -> None:
    from batchcal.cli.views.plan import show_predictions

    _emit_predicted("what-if", predictions, show_predictions(predictions), style)


def _emit_predicted(kind: str, predictions: Sequence[Record], view: Iterable[RenderableType], style: opt.PlanFormat) -> None:
    """Predictions of one kind, which is also the name of the flag that asked for them."""
    import json

    from batchcal.cli import screen
    from batchcal.core.errors import UsageError
    from batchcal.plan.plan import FORMAT

    if style == "json":
        found = [one.model_dump(mode="json") for one in predictions]
        screen.emit(json.dumps({"format": FORMAT, "kind": kind, "predictions": found}, indent=2))
    elif style == "table":
        screen.render(view)
    else:
        raise UsageError(
            f"--{kind} cannot be printed as {style}", known="a prediction is no plan to train with", try_="--format json"
        )
