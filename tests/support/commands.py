"""Commands that are parsed but not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer
from typer.core import TyperGroup

from batchcal.cli.app import VERBS, app_with, without_command


def parse(arguments: Sequence[str]) -> Mapping[str, object]:
    """The values that `batchcal ARGUMENTS` gives its verb, by the name of the parameter.

    Raises an exception where the command line refuses them: an unknown verb or option, a value of the wrong kind.
    """
    command, name, rest = typer.main.get_command(app_with(*VERBS)), "batchcal", without_command(arguments)[0]
    context = command.make_context(name, rest)
    while isinstance(command, TyperGroup) and (rest := [*context._protected_args, *context.args]):
        found, verb, rest = command.resolve_command(context, rest)
        assert found is not None
        assert verb is not None
        command = verb
        context = command.make_context(found, rest, parent=context)
    return context.params
