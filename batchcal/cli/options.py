"""Options of the command line that are not settings. Flags of settings come from `values.settings`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

from batchcal.cli.output.messages import Messages
from batchcal.values.settings import SEARCH

_RESULT = "Result"


def _be_quiet(context: typer.Context, value: bool) -> bool:
    if value:
        context.ensure_object(Messages).quiet = True
    return value


def _be_verbose(context: typer.Context, value: bool) -> bool:
    if value:
        context.ensure_object(Messages).verbose = True
    return value


Target: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="package.module:factory, path/to/file.py:factory or config.toml. Default: the project's task.",
        show_default=False,
    ),
]
Config: TypeAlias = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.", show_default=False)
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="Print only the result and errors.", callback=_be_quiet)
]
Verbose: TypeAlias = Annotated[
    bool,
    typer.Option("--verbose", "-v", metavar="", help="Print the source of each setting, and tracebacks.", callback=_be_verbose),
]
Json: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="Print one JSON document on stdout, and errors as JSON on stderr.", rich_help_panel=_RESULT
    ),
]
RequireSignature: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--require-signature",
        metavar="",
        help="Refuse calibrations without the signature of a known key.",
        rich_help_panel=_RESULT,
    ),
]
RequireSettled: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--require-settled",
        metavar="",
        help="Refuse calibrations whose search did not finish (exit code 3). A command that may calibrate continues it first.",
        rich_help_panel=_RESULT,
    ),
]

Force: TypeAlias = Annotated[
    bool, typer.Option("--force", metavar="", help="Measure even if a valid calibration exists.", rich_help_panel=SEARCH)
]
Attribute: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--attribute",
        metavar="",
        help="Measure also what each setting gains over PyTorch's default. Takes some seconds more.",
        rich_help_panel=SEARCH,
    ),
]
PipelineOnly: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--pipeline-only",
        metavar="",
        help="Only compare DataLoader settings, without the model. Takes a few seconds.",
        rich_help_panel=SEARCH,
    ),
]
Shape: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=VALUE,...",
        help="Predict the memory for these arguments of the task, e.g. d_model=1024,n_layers=24. Can be repeated.",
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
        "--dry-run",
        metavar="",
        help="Show the probes for an assumed machine, without starting or writing anything.",
        rich_help_panel=SEARCH,
    ),
]

CalibrationFile: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE",
        help="Calibration, training or study: file, folder or SPEC. Default: BATCHCAL_CALIBRATION, else the file in .batchcal.",
        show_default=False,
    ),
]
Calibration: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Calibration: file or SPEC. Default: BATCHCAL_CALIBRATION, else the project's calibration in .batchcal.",
        show_default=False,
    ),
]
OtherFile: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="OTHER",
        help="A second calibration, to compare with the first.",
        show_default=False,
    ),
]
Why: TypeAlias = Annotated[bool, typer.Option("--why", metavar="", help="Explain each decision.", rich_help_panel=_RESULT)]
Html: TypeAlias = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="Write one self-contained page.", rich_help_panel=_RESULT, show_default=False),
]
Check: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--check",
        metavar="",
        help="Print nothing. Exit with 0 if the calibration is valid now on this machine, else with 3.",
        rich_help_panel=_RESULT,
    ),
]

PlanFormat: TypeAlias = Literal["table", "json", "sh", "dotenv"]
Format: TypeAlias = Annotated[
    PlanFormat | None,
    typer.Option(
        "--format",
        help="Output format: table, json, sh (for eval) or dotenv (for docker --env-file). (default: table)",
        show_default=False,
    ),
]
WhatIf: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--what-if", metavar="SIZES", help="Predict plans for other memory limits, e.g. 2GiB,4GiB,8GiB.", show_default=False
    ),
]
Shapes: TypeAlias = Annotated[bool, typer.Option("--shapes", metavar="", help="Print the predictions of calibrate --shape.")]
WorldSize: TypeAlias = Annotated[
    int, typer.Option("--world-size", metavar="N", help="Processes that share the effective batch.", min=1)
]

OnStale: TypeAlias = Annotated[
    Literal["fail", "default", "recalibrate"],
    typer.Option(
        "--on-stale",
        metavar="NAME",
        help="Without a valid calibration: fail (exit code 3), default (start without a plan) or recalibrate (calibrate first).",
    ),
]
Command: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="CMD", help="The command to start, with its arguments.", show_default=False)
]

Calibrate: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate",
        metavar="",
        help="Without a valid calibration: calibrate first, or fail (--no-calibrate).",
        rich_help_panel=SEARCH,
    ),
]
ForceCalibration: TypeAlias = Annotated[
    bool,
    typer.Option("--force-calibration", metavar="", help="Calibrate even if a valid calibration exists.", rich_help_panel=SEARCH),
]
NoCheckpoint: TypeAlias = Annotated[bool, typer.Option("--no-checkpoint", metavar="", help="Write no checkpoint.")]
Resume: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--resume", metavar="", help="Continue from --checkpoint, or from the newest checkpoint of this task in .batchcal."
    ),
]

StudyConfig: TypeAlias = Annotated[
    str, typer.Argument(metavar="CONFIG", help="TOML file with the tables task, hpo and hpo.space.", show_default=False)
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a key of the config or an argument of the task. Can be repeated.",
        show_default=False,
    ),
]
Matrix: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--matrix",
        metavar="NAME=A,B,...",
        help="Run a study for each value, or for each combination if repeated.",
        show_default=False,
    ),
]
WriteConfigs: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--write-configs", metavar="FOLDER", help="Only write the config of each study to this folder.", show_default=False
    ),
]
Jobs: TypeAlias = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", help="Number of trials that run at the same time. Each gets a share of memory and CPUs.", min=1
    ),
]
Train: TypeAlias = Annotated[
    bool, typer.Option("--train", metavar="", help="Train with the values and the plan of the best trial.")
]
