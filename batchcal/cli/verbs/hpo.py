"""batchcal hpo run, status, best"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchcal.cli import options as opt
from batchcal.cli.output.messages import Messages
from batchcal.core.errors import NothingFits, Partial

if TYPE_CHECKING:
    from batchcal.cli.commands.studies import OpenStudy
    from batchcal.hpo.study_status import StudyStatus

hpo = typer.Typer(
    name="hpo",
    help="Search hyper-parameters with trials that fit into the memory and stop early.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@hpo.command()
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
    from batchcal.cli.commands.studies import families, needs_optuna, opened, read, write_family
    from batchcal.cli.commands.studies import run as work
    from batchcal.cli.output import stdout
    from batchcal.cli.output.progress import listening_to_study

    needs_optuna()
    voice = context.ensure_object(Messages)
    changed = families(read(config), set_ or (), matrix or ())
    if write_configs is not None:
        for path in write_family(changed, Path(write_configs), config):
            stdout.emit(str(path))
        return
    studies = [opened(config, one, voice) for one in changed]  # errors in any of them are reported before the first begins
    unfit: NothingFits | None = None
    for one in studies:
        try:
            with listening_to_study(voice) as listener:
                seen, presses = work(one, workers=workers, listener=listener)
        except NothingFits as error:
            if len(studies) == 1:
                raise
            voice.say(f"study {one.blueprint.settings.study}: {error.what}; the others go on")
            unfit = error
            continue
        _tell(seen, one.blueprint.shown_storage, as_json=json)
        if seen.done < seen.wanted:
            voice.say(f"the same command goes on: {seen.done} of {seen.wanted} trials are done")
        elif seen.best() is not None:
            chosen = _as_typed(config, set_, one.blueprint.settings.study)
            where = config if chosen == config else one.blueprint.shown_storage
            voice.say(f"next: batchcal show {where} --html study.html")
            voice.say(f"next: batchcal hpo best {chosen} --train")
        if presses > 1 and seen.done < seen.wanted:
            raise Partial(
                f"study {seen.name} was stopped: q was pressed twice",
                known=f"{seen.done} of {seen.wanted} trials are done and kept; those that ran will be run again",
                try_=f"batchcal hpo run {_as_typed(config, set_, seen.name)}",
            )
        if presses:
            return
    if unfit is not None:
        raise unfit


@hpo.command()
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
    from batchcal.cli.commands.studies import seen_of

    voice = context.ensure_object(Messages)
    blueprint = _opened(config, set_, voice).blueprint
    _tell(seen_of(blueprint, config, voice), blueprint.shown_storage, as_json=json)


@hpo.command()
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
    from batchcal.cli.commands.studies import best_of, seen_of
    from batchcal.cli.output import stdout

    voice = context.ensure_object(Messages)
    one = _opened(config, set_, voice)
    seen = seen_of(one.blueprint, config, voice, to_train=train)
    winner = best_of(seen, config)
    if train:
        from batchcal.cli.commands.best_trial import train_winner

        train_winner(one, winner, as_json=json, voice=voice)
    elif json:
        from batchcal.cli.output.document import best_trial

        stdout.emit(best_trial(seen, winner))
    else:
        from batchcal.cli.views.study.winner import show

        stdout.render(show(seen, winner))
        voice.say(f"next: batchcal hpo best {_as_typed(config, set_, seen.name)} --train")


def _tell(seen: StudyStatus, where: str, *, as_json: bool) -> None:
    from batchcal.cli.output import stdout

    if as_json:
        from batchcal.cli.output.document import study

        stdout.emit(study(seen, where))
    else:
        from batchcal.cli.views.study.view import show

        stdout.render(show(seen, where=where))


def _as_typed(config: str, changes: list[str] | None, study: str) -> str:
    """Return the config and the `--set` options. They include the name of `study` if nothing else names it."""
    import shlex

    from batchcal.cli.commands.studies import read

    named = str(read(config).tables.get("hpo", {}).get("study")) == study
    sets = [*(changes or ()), *([] if named or any(one.startswith("study=") for one in changes or ()) else [f"study={study}"])]
    return " ".join([config, *(f"--set {shlex.quote(one)}" for one in sets)])


def _opened(config: str, changes: list[str] | None, voice: Messages) -> OpenStudy:
    from batchcal.cli.commands.studies import families, needs_optuna, opened, read

    needs_optuna()
    return opened(config, families(read(config), changes or (), ())[0], voice)
