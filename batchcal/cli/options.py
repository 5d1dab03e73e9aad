"""Every option, typed once. What settings may give, too, arrives as text: `core.settings` reads it, whatever its origin."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

from batchcal.cli.voice import Voice

_LIMITS = "Limits"
_SEARCH = "Search"
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

Margin: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE", help="Of the limit, left alone: 15% on a CPU, 10% on a GPU.", rich_help_panel=_LIMITS, show_default=False
    ),
]
Headroom: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Expansion goes on while the peak is under this share of the budget: 60%, 70% on a GPU.",
        rich_help_panel=_LIMITS,
        show_default=False,
    ),
]
MemoryLimit: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Stay within 2GiB, below the real limit.", rich_help_panel=_LIMITS, show_default=False),
]
TimeLimit: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="End with the best so far: 60s, 5m. [default: 60s]", rich_help_panel=_SEARCH, show_default=False
    ),
]
MaxProbes: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="Run no more probes than this.", rich_help_panel=_SEARCH, show_default=False),
]
Samples: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="Steps a probe at most: 8 to 32 by the limit.", rich_help_panel=_SEARCH, show_default=False),
]
CalibrationSamples: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calibration-samples", metavar="N", help="Steps a probe at most, where it calibrates.", rich_help_panel=_SEARCH,
        show_default=False,
    ),
]  # fmt: skip
MaxBatch: TypeAlias = Annotated[
    str | None, typer.Option(metavar="N", help="Try nothing larger.", rich_help_panel=_LIMITS, show_default=False)
]
MultipleOf: TypeAlias = Annotated[
    str | None, typer.Option(metavar="N", help="Only multiples of N.", rich_help_panel=_LIMITS, show_default=False)
]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="auto, cpu, cuda, cuda:1, ... [default: auto]", rich_help_panel=_SEARCH, show_default=False
    ),
]
Allocator: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY",
        help="auto (the fastest), default, thp, retain, tcmalloc, jemalloc, mimalloc or a library's path. [default: auto]",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Workers: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="DataLoader workers. Default: what the race finds.", rich_help_panel=_SEARCH, show_default=False
    ),
]
EffectiveBatch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Samples per optimizer step. Default: the capacity.", rich_help_panel=_SEARCH, show_default=False
    ),
]
Seed: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="Where randomness begins. [default: 0]", rich_help_panel=_SEARCH, show_default=False),
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Measure although a fresh calibration is there.", rich_help_panel=_SEARCH)
]
PipelineOnly: TypeAlias = Annotated[
    bool,
    typer.Option("--pipeline-only", help="Only find the fastest DataLoader: no model, a few seconds.", rich_help_panel=_SEARCH),
]
Shape: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=VALUE,...",
        help="Arguments of the task to ask about without measuring, d_model=1024,n_layers=256; plan predicts. Again for more.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Output: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Write there. Default: BATCHCAL_CALIBRATION, else .batchcal/calibration.json of the project.",
        rich_help_panel=_RESULT,
        show_default=False,
    ),
]
DryRun: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show what would be asked of an assumed machine; start and write nothing.", rich_help_panel=_SEARCH
    ),
]

CalibrationFile: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]",
        help="The calibration, or the run: its log or folder. Default: BATCHCAL_CALIBRATION, else .batchcal/calibration.json.",
        show_default=False,
    ),
]
Calibration: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="The calibration. Default: BATCHCAL_CALIBRATION, else .batchcal/calibration.json of the project.",
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

Objective: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="throughput: the fastest micro-batches; memory: the largest. [default: throughput]",
        show_default=False,
    ),
]
PlanFormat: TypeAlias = Literal["table", "json", "sh", "dotenv"]
Format: TypeAlias = Annotated[
    PlanFormat | None,
    typer.Option(
        "--format", help="How to print it: sh is for eval, dotenv for docker --env-file. [default: table]", show_default=False
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
        rich_help_panel=_SEARCH,
    ),
]
ForceCalibration: TypeAlias = Annotated[
    bool, typer.Option("--force-calibration", help="Calibrate although a fresh calibration is there.", rich_help_panel=_SEARCH)
]
Epochs: TypeAlias = Annotated[
    str | None, typer.Option(metavar="N", help="Passes over the data, in all. [default: 1]", show_default=False)
]
Checkpoint: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Written after every epoch and when a signal ends it.", show_default=False),
]
Resume: TypeAlias = Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint where that exists.")]
Log: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="What `batchcal show FILE` shows. [default: run.jsonl beside the calibration]", show_default=False
    ),
]
ActivationCheckpointing: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="off|auto|NAMES",
        help="Compute the activations of a list of modules again in the backward pass. [default: off]",
        show_default=False,
    ),
]
CheckpointEvery: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Write it within an epoch, too, so often. [default: 10m]", show_default=False),
]
Patience: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="Stop after N epochs without a better evaluation. [default: never]", show_default=False),
]
StartMicroBatch: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="Begin with this micro-batch and grow to the plan's while there is room.", show_default=False),
]
OnOom: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="stop|split",
        help="A model with BatchNorm does not train the same when a batch that does not fit is cut. [default: stop]",
        show_default=False,
    ),
]
DropLast: TypeAlias = Annotated[bool, typer.Option("--drop-last", help="Leave out the last, smaller group of an epoch.")]

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
