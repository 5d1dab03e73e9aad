"""The command line: its verbs, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from batchcal.cli.verbs.calibrate import calibrate
from batchcal.cli.verbs.detect import detect
from batchcal.cli.verbs.execute import execute
from batchcal.cli.verbs.hpo import hpo
from batchcal.cli.verbs.plan import plan
from batchcal.cli.verbs.show import show
from batchcal.cli.verbs.train import train
from batchcal.cli.voice import Voice, tell
from batchcal.core.errors import BatchcalError, Interrupted, UsageError, UserCodeError, exit_code_of
from batchcal.core.signals import raised_as_interrupted

EXIT_CODES: Final = (
    "Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 no usable calibration, 4 nothing fits, 5 your code failed, "
    "6 stopped before anything was verified, 7 measured but not saved, 130 and 143 signals."
)

app = typer.Typer(
    name="batchcal",
    help="Measures, inside your container's real limits, the batch size your PyTorch training can use.",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)
for verb in (detect, calibrate, show, plan, train):
    app.command()(verb)
# What stands behind the command's own name is the command's, options too.
app.command("exec", context_settings={"allow_interspersed_args": False})(execute)

app.add_typer(hpo)


def _version(value: bool) -> None:
    if not value:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from batchcal.cli import screen
    from batchcal.core.version import __version__

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    screen.emit(f"batchcal {__version__}, torch {torch}, Python {platform.python_version()}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Say the versions of batchcal, torch and Python.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What holds before any verb."""


def run(arguments: Sequence[str]) -> int:
    """Runs one command. Returns the exit code; never raises but SystemExit of Typer's own."""
    from batchcal.cli.screen import be_lenient

    be_lenient()
    voice = Voice.of(arguments)
    voice.hold()
    nothing = list(arguments) in ([], ["hpo"])
    try:
        with raised_as_interrupted():
            code: object = typer.main.get_command(app).main(
                args=[*arguments, "--help"] if nothing else list(arguments),
                prog_name="batchcal",
                standalone_mode=False,
                obj=voice,
            )
        voice.release()
        # Nothing was asked: the help is shown, and a script learns that it did nothing.
        return UsageError.exit_code if nothing else code if isinstance(code, int) else 0
    except BatchcalError as error:
        return _failed(error, voice)
    except KeyboardInterrupt:
        return _failed(Interrupted(2), voice)
    except Exception as error:  # noqa: BLE001 - the last one to catch: a message instead of a traceback
        from batchcal.cli.failure import misused, unexpected

        return _failed(misused(error) or unexpected(error, verbose=voice.verbose), voice)


def _failed(error: BatchcalError, voice: Voice) -> int:
    """Tells the error. stdout stays empty, but for a shell that evaluates it."""
    from batchcal.cli.failure import as_json, in_three_parts, unexpected, wants_colour

    code = exit_code_of(error)
    if not isinstance(error, UsageError):
        voice.release()
    elif voice.settings is not None:
        error = voice.settings.respelled(error).with_traceback(error.__traceback__)
    tell(as_json(error) if voice.as_json else in_three_parts(error, colour=wants_colour()))
    # An error of the user's code has shown the frames of that code; ours would stand above them.
    if voice.verbose and error.__traceback__ is not None and not voice.as_json and not isinstance(error, UserCodeError):
        tell(unexpected(error, verbose=True).known)
    if not voice.as_json:
        voice.release(only=" note: ")
    if voice.for_eval:
        from batchcal.cli.screen import emit
        from batchcal.plan.formats import failure_sh

        try:
            emit(failure_sh(code))
        except BatchcalError as broken:
            tell(in_three_parts(broken))
    sys.stderr.flush()
    return code
