"""Options of the command line that are not settings. Flags of settings come from `values.settings`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

from batchcal.cli.voice import Voice
from batchcal.values.settings import SEARCH

_RESULT = "Result"


def _be_quiet(context: typer.Context, value: bool) -> bool:
    if value:
        context.ensure_object(Voice).quiet = True
    return value


def _be_verbose(context: typer.Context, value: bool) -> bool:
    if value:
        context.ensure_object(Voice).verbose = True
    return value


Target: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET]",
        help="package.module:factory, path/to/file.py:factory or config.toml. Default: the project's task.",
        show_default=False,
    ),
]
Config: TypeAlias = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.", show_default=False)
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.", callback=_be_quiet)
]
Verbose: TypeAlias = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say where each setting comes from; show tracebacks.", callback=_be_verbose)
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout; errors as JSON on stderr.", rich_help_panel=_RESULT)
]
RequireSignature: TypeAlias = Annotated[
    bool, typer.Option("--require-signature", help="Refuse calibrations that no known key has signed.", rich_help_panel=_RESULT)
]

Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Measure although a fresh calibration is there.", rich_help_panel=SEARCH)
]
PipelineOnly: TypeAlias = Annotated[
    bool,
    typer.Option("--pipeline-only", help="Only find the fastest DataLoader: no model, a few seconds.", rich_help_panel=SEARCH),
]
Shape: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=VALUE,...",
        help="Arguments of the task to ask about without measuring, d_model=1024,n_layers=256; plan predicts. Again for more.",
        rich_help_panel=SEARCH,
        show_default=False,
    ),
]
Output: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="File to write. Default: BATCHCAL_CALIBRATION, else the file of the task in .batchcal.",
        rich_help_panel=_RESULT,
        show_default=False,
    ),
]
DryRun: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show what would be asked of an assumed machine; start and write nothing.", rich_help_panel=SEARCH
    ),
]

CalibrationFile: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]",
        help="A calibration (file or SPEC), or a run (log or folder). Default: BATCHCAL_CALIBRATION, else that in .batchcal.",
        show_default=False,
    ),
]
Calibration: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="The calibration: a file or a SPEC. Default: BATCHCAL_CALIBRATION, else that of the project in .batchcal.",
        show_default=False,
    ),
]
OtherFile: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="[OTHER]",
        help="A second calibration: what changed between the two, and by how much.",
        show_default=False,
    ),
]
Why: TypeAlias = Annotated[bool, typer.Option("--why", help="Explain each decision.", rich_help_panel=_RESULT)]
Html: TypeAlias = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="Write one self-contained page.", rich_help_panel=_RESULT, show_default=False),
]
Check: TypeAlias = Annotated[
    bool, typer.Option("--check", help="Say nothing: exit 0 if it may be used here and now, else 3.", rich_help_panel=_RESULT)
]

PlanFormat: TypeAlias = Literal["table", "json", "sh", "dotenv"]
Format: TypeAlias = Annotated[
    PlanFormat | None,
    typer.Option(
        "--format", help="How to print it: sh is for eval, dotenv for docker --env-file. (default: table)", show_default=False
    ),
]
WhatIf: TypeAlias = Annotated[
    str | None,
    typer.Option("--what-if", metavar="SIZES", help="What 2GiB,4GiB,8GiB would give; predicted, not run.", show_default=False),
]
Shapes: TypeAlias = Annotated[
    bool, typer.Option("--shapes", help="Only what the shapes of calibrate --shape would give; predicted, not run.")
]
WorldSize: TypeAlias = Annotated[
    int, typer.Option("--world-size", metavar="N", help="Processes that share the effective batch.", min=1)
]

OnStale: TypeAlias = Annotated[
    Literal["fail", "default", "recalibrate"],
    typer.Option(
        "--on-stale",
        help="Without a calibration that holds here and now: fail with 3, start the command as it is, or calibrate first.",
    ),
]
Command: TypeAlias = Annotated[list[str], typer.Argument(metavar="CMD", help="What is started.", show_default=False)]

Calibrate: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="Calibrate where no fresh calibration is there, or refuse.",
        rich_help_panel=SEARCH,
    ),
]
ForceCalibration: TypeAlias = Annotated[
    bool, typer.Option("--force-calibration", help="Calibrate although a fresh calibration is there.", rich_help_panel=SEARCH)
]
NoCheckpoint: TypeAlias = Annotated[bool, typer.Option("--no-checkpoint", help="Write no checkpoint.")]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Continue from --checkpoint, or from the newest checkpoint of this task in .batchcal.")
]

StudyConfig: TypeAlias = Annotated[
    str, typer.Argument(metavar="CONFIG", help="TOML file with the tables task, hpo and hpo.space.", show_default=False)
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A key of the config, or an argument of the task. Again for more.", show_default=False
    ),
]
Matrix: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--matrix",
        metavar="NAME=A,B,...",
        help="A study for each value, one after another; with several, for each combination.",
        show_default=False,
    ),
]
WriteConfigs: TypeAlias = Annotated[
    str | None,
    typer.Option("--write-configs", metavar="FOLDER", help="Only write the config of each study there.", show_default=False),
]
Jobs: TypeAlias = Annotated[
    int, typer.Option("--workers", metavar="N", help="Trials at once, each with its share of memory and cores.", min=1)
]
Train: TypeAlias = Annotated[bool, typer.Option("--train", help="Train with the best trial's values and its plan.")]
