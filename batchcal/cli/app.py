"""The command line: its verbs, and the only place that turns an error into a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from batchcal.cli.output.messages import Messages, show_message
from batchcal.cli.verbs.calibrate import calibrate
from batchcal.cli.verbs.detect import detect
from batchcal.cli.verbs.execute import execute
from batchcal.cli.verbs.hpo import hpo
from batchcal.cli.verbs.plan import plan
from batchcal.cli.verbs.show import show
from batchcal.cli.verbs.train import train
from batchcal.core.errors import BatchcalError, Interrupted, UsageError, UserCodeError, exit_code_of
from batchcal.core.signals import raised_as_interrupted

EXIT_CODES: Final = (
    "Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 no usable calibration, 4 nothing fits, 5 your code failed, "
    "6 stopped before anything was verified, 7 measured but not saved, 130 and 143 signals."
)

app = typer.Typer(
    name="batchcal",
    help="Measures which batch size and settings a PyTorch training can use within the memory of this machine or container.",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)
for verb in (detect, calibrate, show, plan, train):
    app.command()(verb)
# All arguments after the name of the command belong to the command, options included.
app.command("exec", context_settings={"allow_interspersed_args": False})(execute)

app.add_typer(hpo)


def _version(value: bool) -> None:
    if not value:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from batchcal.cli.output import stdout
    from batchcal.core.version import __version__

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    stdout.emit(f"batchcal {__version__}, torch {torch}, Python {platform.python_version()}")
    raise typer.Exit


@app.callback()
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
    from batchcal.cli.output.stdout import be_lenient

    be_lenient()
    messages = Messages.of(arguments)
    messages.hold()
    shows_help = list(arguments) in ([], ["hpo"])
    try:
        with raised_as_interrupted():
            code: object = typer.main.get_command(app).main(
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
        from batchcal.cli.output.failure import misused, unexpected

        return _report_error(misused(error) or unexpected(error, verbose=messages.verbose), messages)


def _report_error(error: BatchcalError, messages: Messages) -> int:
    """Report the error and return its exit code. stdout stays empty, unless a shell evaluates it."""
    from batchcal.cli.output.failure import as_json, in_three_parts, unexpected, wants_colour

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
        from batchcal.cli.output.stdout import emit
        from batchcal.plan.formats import failure_sh

        try:
            emit(failure_sh(code))
        except BatchcalError as write_error:
            show_message(in_three_parts(write_error))
    sys.stderr.flush()
    return code
