"""Flags of settings: a verb lists its options, and each becomes a flag with its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from batchcal.core.option import Option

Verb = Callable[..., None]


class Flags(dict[str, str | None]):
    """Values of a verb's setting flags by key, as typed. None: the flag was not given."""


class _VerbWithSettings:
    """A verb with a signature for Typer that has one flag per option in place of the parameter `flags`."""

    def __init__(self, verb: Verb, options: tuple[Option[object], ...], renamed: Mapping[str, str]) -> None:
        self._verb = verb
        self._keys = tuple(option.key for option in options)
        self.__name__, self.__doc__, self.__module__ = verb.__name__, verb.__doc__, verb.__module__
        own = inspect.signature(verb, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in own.parameters.values():
            if parameter.name == "flags":
                parameters += (_parameter(option, renamed.get(option.key, option.flag)) for option in options)
            else:
                parameters.append(parameter)
        self.__signature__ = own.replace(parameters=parameters)
        self.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}

    def __call__(self, **arguments: object) -> None:
        texts = {key: _as_text(arguments.pop(key)) for key in self._keys}
        self._verb(**arguments, flags=Flags(texts))


def takes(*options: Option[object], renamed: Mapping[str, str] | None = None) -> Callable[[Verb], Verb]:
    """Give a verb a flag for each of `options`. Their values arrive as its argument `flags`.

    Args:
        renamed: flags that differ from the option's own flag, by the key of the option.
    """
    return lambda verb: _VerbWithSettings(verb, options, renamed or {})


def _parameter(option: Option[object], flag: str) -> inspect.Parameter:
    # The description states the default. Typer would show that the flag is not given by default.
    metavar = "" if option.is_switch else option.metavar or None
    info = typer.Option(flag, metavar=metavar, help=option.description, rich_help_panel=option.panel, show_default=False)
    return inspect.Parameter(
        option.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if option.is_switch else None,
        annotation=Annotated[bool if option.is_switch else str | None, info],
    )


def _as_text(value: object) -> str | None:
    """Return the text of a flag. A switch has only two states: given, or left out."""
    return "true" if value is True else value if isinstance(value, str) else None
