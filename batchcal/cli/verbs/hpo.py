"""batchcal hpo run, status, best"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.commands.best_trial import train_winner
from batchcal.cli.commands.studies import best_of, families, needs_optuna, prepare_study, read, status_of, write_family
from batchcal.cli.commands.studies import run as run_study
from batchcal.cli.help import VerbCommand, VerbGroup
from batchcal.cli.output import stdout
from batchcal.cli.output.document import best_trial
from batchcal.cli.output.messages import Messages
from batchcal.cli.output.progress import listening_to_study
from batchcal.core.errors import NothingFits, Partial

if TYPE_CHECKING:
    from batchcal.cli.commands.studies import OpenStudy
    from batchcal.hpo.study_status import StudyStatus

hpo = typer.Typer(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})


@hpo.command(cls=VerbCommand)
def run(
    context: typer.Context,
    config: opt.StudyConfig,
    *,
    set_: opt.Set = None,
    matrix: opt.Matrix = None,
    workers: opt.Jobs = 1,
    write_configs: opt.WriteConfigs = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Run or continue a study. The same command on other machines joins it."""
    needs_optuna()
    messages = context.ensure_object(Messages)
    changed = families(read(config), set_ or (), matrix or ())
    if write_configs is not None:
        for path in write_family(changed, Path(write_configs), config):
            stdout.emit(str(path))
        return
    studies = [
        prepare_study(config, member, messages) for member in changed
    ]  # errors in any are reported before the first starts
    unfit: NothingFits | None = None
    for study in studies:
        try:
            with listening_to_study(messages) as listener:
                study_status, presses = run_study(study, workers=workers, listener=listener)
        except NothingFits as error:
            if len(studies) == 1:
                raise
            messages.print(f"study {study.blueprint.settings.study}: {error.what}; the other studies continue")
            unfit = error
            continue
        _show_study(study_status, study.blueprint.shown_storage, as_json=json)
        if study_status.done < study_status.wanted:
            messages.print(f"{study_status.done} of {study_status.wanted} trials are done; the same command continues the study")
        elif study_status.best() is not None:
            chosen = _as_typed(config, set_, study.blueprint.settings.study)
            target = config if chosen == config else study.blueprint.shown_storage
            messages.print(f"next: batchcal show {target} --html study.html")
            messages.print(f"next: batchcal hpo best {chosen} --train")
        if presses > 1 and study_status.done < study_status.wanted:
            raise Partial(
                f"study {study_status.name} was stopped: q was pressed twice",
                known=f"{study_status.done} of {study_status.wanted} trials are done and saved; "
                "trials that were running will run again",
                try_=f"batchcal hpo run {_as_typed(config, set_, study_status.name)}",
            )
        if presses:
            return
    if unfit is not None:
        raise unfit


@hpo.command(cls=VerbCommand)
def status(
    context: typer.Context,
    config: opt.StudyConfig,
    *,
    set_: opt.Set = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Show the trials of a study by state, the best trial, and the epochs saved by pruning."""
    messages = context.ensure_object(Messages)
    blueprint = _prepare(config, set_, messages).blueprint
    _show_study(status_of(blueprint, config, messages), blueprint.shown_storage, as_json=json)


@hpo.command(cls=VerbCommand)
def best(
    context: typer.Context,
    config: opt.StudyConfig,
    *,
    set_: opt.Set = None,
    train: opt.Train = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Show the values of the best trial; with --train, train with them."""
    messages = context.ensure_object(Messages)
    study = _prepare(config, set_, messages)
    study_status = status_of(study.blueprint, config, messages, to_train=train)
    winner = best_of(study_status, config)
    if train:
        train_winner(study, winner, as_json=json, messages=messages)
    elif json:
        stdout.emit(best_trial(study_status, winner))
    else:
        from batchcal.cli.views.study.winner import show

        stdout.render(show(study_status, winner))
        messages.print(f"next: batchcal hpo best {_as_typed(config, set_, study_status.name)} --train")


def _show_study(study_status: StudyStatus, shown_storage: str, *, as_json: bool) -> None:
    if as_json:
        from batchcal.cli.output.document import study

        stdout.emit(study(study_status, shown_storage))
    else:
        from batchcal.cli.views.study.view import show

        stdout.render(show(study_status, storage=shown_storage))


def _as_typed(config: str, changes: list[str] | None, study: str) -> str:
    """Return the config and the `--set` options. They include the name of `study` if nothing else names it."""
    named = str(read(config).tables.get("hpo", {}).get("study")) == study
    sets = [
        *(changes or ()),
        *([] if named or any(change.startswith("study=") for change in changes or ()) else [f"study={study}"]),
    ]
    return " ".join([config, *(f"--set {shlex.quote(change)}" for change in sets)])


def _prepare(config: str, changes: list[str] | None, messages: Messages) -> OpenStudy:
    needs_optuna()
    return prepare_study(config, families(read(config), changes or (), ())[0], messages)
