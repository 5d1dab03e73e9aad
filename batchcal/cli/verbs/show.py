"""batchcal show"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchcal.calibration.keys import find_trust
from batchcal.calibration.locate import find_calibration, named_by
from batchcal.calibration.store import Loaded, load, refusal
from batchcal.cli import options as opt
from batchcal.cli.commands.runs import names_a_run, refuse, show_run
from batchcal.cli.commands.studies import names_a_study, show_study
from batchcal.cli.output import stdout
from batchcal.cli.output.document import comparison, document
from batchcal.cli.output.messages import Messages
from batchcal.core.clock import SystemClock
from batchcal.core.errors import BatchcalError, NoCalibration, UsageError
from batchcal.detect.detect import detect
from batchcal.plan.load import staleness

if TYPE_CHECKING:
    from batchcal.cli.views.calibration.view import ShownCalibration


def show(
    context: typer.Context,
    file: opt.CalibrationFile = None,
    other: opt.OtherFile = None,
    *,
    why: opt.Why = False,
    html: opt.Html = None,
    check: opt.Check = False,
    require_signature: opt.RequireSignature = False,
    require_settled: opt.RequireSettled = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run `batchcal show`."""
    if file is not None and names_a_study(file):
        refuse(
            file, "study", check=check or require_settled, why=why, require_signature=require_signature, other=other is not None
        )
        show_study(file, html=html, as_json=json, messages=context.ensure_object(Messages))
        return
    if file is not None and (names_a_run(file) or names_a_run(other)):
        refuse(file, "run", check=check or require_settled, why=why, require_signature=require_signature, other=other is not None)
        show_run(file, html=html, as_json=json, messages=context.ensure_object(Messages))
        return
    if file is not None and other is not None:
        if require_settled:
            raise UsageError("--require-settled is for --check", try_="batchcal show --check --require-settled")
        if check or why or html is not None:
            raise UsageError(
                "--check, --why and --html take one calibration, and two are given", try_=f"batchcal show {file} {other}"
            )
        _compare(file, other, require_signature=require_signature, as_json=json)
        return
    if check:
        _check(file, require_signature=require_signature, require_settled=require_settled)
        return
    if require_settled:
        raise UsageError("--require-settled is for --check", try_="batchcal show --check --require-settled")
    view = _load_view(file, require_signature=require_signature)
    if html is not None:
        from batchcal.cli.output.page_file import write_page
        from batchcal.cli.views.calibration.page import page

        write_page(Path(html), page(view), shows=view.path)
        context.ensure_object(Messages).print(f"written: {html}")
    if json:
        stdout.emit(document(view, measured=False))
    elif html is None:
        from batchcal.cli.views.calibration.view import show as show_calibration

        stdout.render(show_calibration(view, why=why))
    if view.calibration.status == "partial":
        raise NoCalibration(
            "this calibration has verified no batch size, so no plan can be made from it",
            try_="batchcal calibrate    continues from the saved measurements",
        )


def _load_view(file: str | None, *, require_signature: bool) -> ShownCalibration:
    """Return the calibration with its freshness.

    Raises:
        NoCalibration: there is no calibration, or it may not be trusted.
    """
    from batchcal.cli.views.calibration.view import ShownCalibration

    located = find_calibration(Path.cwd(), os.environ) if file is None else named_by(file, Path.cwd(), os.environ)
    path = located.path
    stored = load(path, trust=find_trust(os.environ, require_signature=require_signature))
    if not isinstance(stored, Loaded):
        raise refusal(stored, path, spec=located.spec)
    clock = SystemClock()
    stale = staleness(stored.calibration, path, environment=detect(), environ=os.environ, clock=clock)
    return ShownCalibration(calibration=stored.calibration, path=path, stale=stale, at=clock.now(), notices=stored.notices)


def _compare(first: str, second: str, *, require_signature: bool, as_json: bool) -> None:
    """Show the changes from `first` to `second`.

    Raises:
        NoCalibration: one of them does not exist, or may not be trusted.
    """
    from batchcal.cli.views.calibration.comparison import compare, show

    trust = find_trust(os.environ, require_signature=require_signature)
    calibrations = []
    for path in (named_by(text, Path.cwd(), os.environ).path for text in (first, second)):
        stored = load(path, trust=trust)
        if not isinstance(stored, Loaded):
            raise refusal(stored, path)
        calibrations.append(stored.calibration)
    rows = compare(*calibrations)
    if as_json:
        stdout.emit(comparison(rows, (first, second)))
    else:
        stdout.render(show(rows, (first, second)))


def _check(file: str | None, *, require_signature: bool, require_settled: bool) -> None:
    """Exit with 3, silently, unless the calibration may be used here and now."""
    try:
        view = _load_view(file, require_signature=require_signature)
    except BatchcalError as error:
        raise typer.Exit(NoCalibration.exit_code) from error
    unfinished = require_settled and view.calibration.status == "unsettled"
    if view.stale is not None or unfinished or not view.calibration.is_usable:
        raise typer.Exit(NoCalibration.exit_code)
