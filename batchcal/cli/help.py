"""Commands of Typer whose help shows `--help` as the switch that it is, without `<bool>`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Context
    from typer.core import TyperOption


class VerbCommand(TyperCommand):
    """A verb."""

    def get_help_option(self, ctx: Context) -> TyperOption | None:
        """Return the option `--help`, without a type."""
        return _as_switch(super().get_help_option(ctx))


class VerbGroup(TyperGroup):
    """Several verbs."""

    def get_help_option(self, ctx: Context) -> TyperOption | None:
        """Return the option `--help`, without a type."""
        return _as_switch(super().get_help_option(ctx))


def _as_switch(option: TyperOption | None) -> TyperOption | None:
    if option is not None:
        option.metavar = ""
    return option
