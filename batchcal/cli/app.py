"""The command line: its verbs, and the only place that turns an error into a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from batchcal.cli.help import VerbCommand, VerbGroup
from batchcal.cli.output import stdout
from batchcal.cli.output.failure import as_json, in_three_parts, misused, unexpected, wants_colour
from batchcal.cli.output.messages import Messages, show_message
from batchcal.core.errors import BatchcalError, Interrupted, UsageError, UserCodeError, exit_code_of
from batchcal.core.signals import raised_as_interrupted
from batchcal.core.version import __version__

EXIT_CODES: Final = (
    "Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 no usable calibration, 4 nothing fits, 5 your code failed, "
    "6 stopped before anything was verified, 7 measured but not saved, 130 and 143 signals."
)


@dataclass(frozen=True)
class Verb:
    """One verb of the command line. Its module is imported only if the verb is called, so that a verb starts fast."""

    load: Callable[[], Callable[..., None] | typer.Typer]
    """Imports the verb: a function, or an app with verbs of its own."""
    help: str


def _detect() -> Callable[..., None]:
    from batchcal.cli.verbs.detect import detect

    return detect


def _calibrate() -> Callable[..., None]:
    from batchcal.cli.verbs.calibrate import calibrate

    return calibrate


def _show() -> Callable[..., None]:
    from batchcal.cli.verbs.show import show

    return show


def _plan() -> Callable[..., None]:
    from batchcal.cli.verbs.plan import plan

    return plan


def _train() -> Callable[..., None]:
    from batchcal.cli.verbs.train import train

    return train


def _execute() -> Callable[..., None]:
    from batchcal.cli.verbs.execute import execute

    return execute


def _hpo() -> typer.Typer:
    from batchcal.cli.verbs.hpo import hpo

    return hpo


VERBS: Final = {
    "detect": Verb(
        _detect,
        "Show the memory, CPUs and devices that this process may use, with the source of each number, and known problems.",
    ),
    "calibrate": Verb(
        _calibrate,
        """Measure the batch size that fits and the fastest settings, in fenced child processes, and write calibration.json.

        After -- comes a command that is measured instead of a task: calibrate -- python train.py --batch-size {batch_size}
        """,
    ),
    "show": Verb(
        _show,
        """Show a calibration, a training or a study, or compare two calibrations.

        A calibration: memory curve, probes, result, what limits it, and whether it is still valid.
        A training: loss, speed, memory and events. A study: its trials; with --html also the importance of the parameters.
        """,
    ),
    "plan": Verb(_plan, "Print the settings for an effective batch: sizes, workers, threads, allocator."),
    "train": Verb(_train, "Train with the plan of the calibration. Calibrate first if there is no valid calibration."),
    "exec": Verb(_execute, "Set threads, allocator and BATCHCAL_PLAN_* as planned, and replace this process by a command."),
    "hpo": Verb(_hpo, "Search hyper-parameters with trials that fit into the memory and stop early."),
}
TAKES_COMMAND_OR_TASK: Final = "calibrate"
"""A command follows `--`; a task does not."""
TAKES_COMMAND: Final = "exec"
"""All arguments after the name of the command belong to the command, options included."""


def app_with(*names: str) -> typer.Typer:
    """Return the command line with these verbs. The other verbs have only a name and a help."""
    app = typer.Typer(
        name="batchcal",
        cls=VerbGroup,
        help="Measures which batch size and settings a PyTorch training can use within the memory of this machine or container.",
        epilog=EXIT_CODES,
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=False,
    )
    app.callback()(_root)
    for name, verb in VERBS.items():
        loaded = verb.load() if name in names else _not_loaded
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=name, help=verb.help)
        else:
            settings = {"allow_interspersed_args": False} if name == TAKES_COMMAND else None
            app.command(name, cls=VerbCommand, help=verb.help, context_settings=settings)(loaded)
    return app


def _not_loaded() -> None:
    """Stand for a verb that is listed and not called."""


def _version(value: bool) -> None:
    if not value:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    stdout.emit(f"batchcal {__version__}, torch {torch}, Python {platform.python_version()}")
    raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", help="Print the versions of batchcal, torch and Python.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options before any verb."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Raises nothing except Typer's own SystemExit."""
    stdout.be_lenient()
    arguments, command = without_command(arguments)
    messages = Messages.of(arguments)
    messages.command = command
    messages.hold()
    shows_help = list(arguments) in ([], ["hpo"])
    try:
        with raised_as_interrupted():
            code: object = typer.main.get_command(app_with(*arguments[:1])).main(
                args=[*arguments, "--help"] if shows_help else list(arguments),
                prog_name="batchcal",
                standalone_mode=False,
                obj=messages,
            )
        messages.release()
        # No arguments: the help is shown, and the exit code shows a script that nothing was done.
        return UsageError.exit_code if shows_help else code if isinstance(code, int) else 0
    except BatchcalError as error:
        return _report_error(error, messages)
    except KeyboardInterrupt:
        return _report_error(Interrupted(2), messages)
    except Exception as error:  # noqa: BLE001 - the last handler: a message instead of a traceback
        return _report_error(misused(error) or unexpected(error, verbose=messages.verbose), messages)


def without_command(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """Return the arguments before `--`, and the command after it. None: this verb takes no command, or there is no `--`."""
    words = list(arguments)
    if words[:1] != [TAKES_COMMAND_OR_TASK] or "--" not in words:
        return words, None
    end = words.index("--")
    return words[:end], tuple(words[end + 1 :])


def _report_error(error: BatchcalError, messages: Messages) -> int:
    """Report the error and return its exit code. stdout stays empty, unless a shell evaluates it."""
    code = exit_code_of(error)
    if not isinstance(error, UsageError):
        messages.release()
    elif messages.settings is not None:
        error = messages.settings.respelled(error).with_traceback(error.__traceback__)
    show_message(as_json(error) if messages.as_json else in_three_parts(error, colour=wants_colour()))
    # An error of the user's code already shows the frames of that code. Frames of batchcal would only stand above them.
    if messages.verbose and error.__traceback__ is not None and not messages.as_json and not isinstance(error, UserCodeError):
        show_message(unexpected(error, verbose=True).known)
    if not messages.as_json:
        messages.release(only=" note: ")
    if messages.for_eval:
        from batchcal.plan.formats import failure_sh

        try:
            stdout.emit(failure_sh(code))
        except BatchcalError as write_error:
            show_message(in_three_parts(write_error))
    sys.stderr.flush()
    return code
