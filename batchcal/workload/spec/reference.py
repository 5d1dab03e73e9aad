"""TaskReference: a task as text. It travels to children, which resolve it there; the object itself never travels."""

from __future__ import annotations

from shlex import quote
from typing import NamedTuple

from batchcal.core.errors import UsageError
from batchcal.core.values import Frozen

Scalar = str | int | float | bool | None
"""Types of arguments of a factory: TOML, JSON and the command line can represent them."""


class TaskReference(Frozen):
    """`package.module:factory` or `path/to/file.py:factory`, with the arguments that it gets by name."""

    spec: str
    directory: str
    """Absolute. Importable while the task is resolved, and what relative paths are relative to."""
    arguments: dict[str, Scalar] = {}
    config: str | None = None
    """Path of the TOML config that it came from, relative to `directory` where it lies below it."""
    command: tuple[str, ...] = ()
    """Words of the command, if the training is a command and not a task. `spec` is then `-- ` and its text."""


COMMAND_MARK = "-- "
"""Start of the `spec` of a command."""


def calibrate_line(spec: str, options: str = "") -> str:
    """Return the command line that calibrates a task or a command, as it is typed."""
    is_command = spec.startswith(COMMAND_MARK)
    words = ("batchcal calibrate", options, spec) if is_command else ("batchcal calibrate", quote(spec), options)
    return " ".join(word for word in words if word)


class Spec(NamedTuple):
    """The two halves of a SPEC."""

    file: str | None
    """`path/to/file.py` as given, for a SPEC that names a file."""
    module: str | None
    """`package.module`, for one that names a module."""
    attribute: str
    """Name of the factory, with dots where it is an attribute of something."""


def parse_spec(text: str) -> Spec:
    """`package.module:factory` or `path/to/file.py:factory`. Only the form is judged; the disk is not looked at.

    Raises:
        UsageError: any other form.
    """
    if not text.isprintable():
        raise UsageError(
            f"{text!r} contains a character that cannot be printed",
            known="no name of a module or a file has such a character",
            try_="train.py:task",
        )
    location, colon, attribute = text.rpartition(":")
    if not location or not attribute:
        missing = "colon" if not colon else "name after the colon" if location else "module or file before the colon"
        better = f"{location}:task" if location else f"train.py:{attribute}" if colon and attribute else f"{text.strip(':')}:task"
        raise UsageError(
            f"{text!r} has no {missing}",
            known="a SPEC names a module or a file, and the function in it that returns the task",
            try_=f"batchcal calibrate {quote(better)}",
        )
    names = attribute.split(".")
    if not all(name.isidentifier() for name in names):
        bare = attribute.partition("(")[0]
        raise UsageError(
            f"{attribute!r} in {text!r} is not the name of a function",
            known="batchcal calls the function itself; its arguments come from [task.args] of a config",
            try_=f"batchcal calibrate {quote(location)}:{bare if bare.isidentifier() else 'task'}",
        )
    if any(name.startswith("__") for name in names):
        raise UsageError(
            f"{attribute!r} in {text!r} is a special name of Python", known="a SPEC names a function of your own code",
            try_=f"batchcal calibrate {quote(location)}:task",
        )  # fmt: skip
    if location.endswith(".py") or "/" in location or "\\" in location:
        return Spec(location, None, attribute)
    if not all(name.isidentifier() for name in location.split(".")):
        raise UsageError(
            f"{location!r} in {text!r} is neither a module nor a file",
            known="a module is package.module, the name of a file ends with .py",
            try_=f"batchcal calibrate {quote(location.strip('.') + '.py')}:{attribute}",
        )
    return Spec(None, location, attribute)


def parse_arguments(text: str, *, name: str) -> dict[str, Scalar]:
    """`d_model=1024,n_layers=256`: values as TOML would read them, else as text.

    Raises:
        UsageError: a part that is not NAME=VALUE, or a name that comes twice.
    """
    arguments: dict[str, Scalar] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise UsageError(
                f"--{name} {part.strip()!r} is not NAME=VALUE",
                known="NAME is an argument of the task function",
                try_=f"--{name} {key if key.isidentifier() else 'd_model'}=1024",
            )
        if key in arguments:
            raise UsageError(
                f"--{name} sets {key} twice",
                known=f"one --{name} is one set of values",
                try_=f"--{name} {key}={arguments[key]} --{name} {key}={value}",
            )
        arguments[key] = _scalar(value)
    return arguments


def _scalar(text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
