"""batchcal detect"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchcal.calibration.locate import find_calibration
from batchcal.cli import options as opt
from batchcal.cli.output import stdout
from batchcal.cli.output.messages import Messages
from batchcal.core.clock import SystemClock
from batchcal.core.errors import BatchcalError
from batchcal.core.progress import key_values
from batchcal.detect.detect import detect as detect_machine
from batchcal.detect.summary import EVENT, summary
from batchcal.detect.torch_answer import query_torch_in_child
from batchcal.plan.load import open_calibration

if TYPE_CHECKING:
    from batchcal.detect.environment import Environment


def detect(context: typer.Context, json: opt.Json = False, quiet: opt.Quiet = False, verbose: opt.Verbose = False) -> None:
    """Run `batchcal detect`."""
    environment = detect_machine(ask_child=query_torch_in_child)
    if json:
        stdout.emit(environment.model_dump_json(indent=2))
    else:
        from batchcal.cli.views.environment import show

        stdout.render(show(environment))
    line = key_values(EVENT, summary(environment, max_batch_size=_calibrated_batch(environment, os.environ)))
    context.ensure_object(Messages).print(f"INFO {line}")


def _calibrated_batch(environment: Environment, environ: Mapping[str, str]) -> int | None:
    """Return the training capacity of the project's calibration. None: no calibration is valid here and now."""
    try:
        calibration, _ = open_calibration(
            find_calibration(Path.cwd(), environ), on_stale="raise", environment=environment, environ=environ, clock=SystemClock()
        )
    except BatchcalError:
        return None
    finding = calibration.finding()
    return None if finding is None else finding.train.batch
