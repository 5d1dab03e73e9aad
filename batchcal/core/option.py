"""Settings are attributes of tables. Each defines its type, default and description once, and the rest is derived from these.

class Training(Table):
    name = "train"
    epochs = Option(count, 1, "Passes over the training data.", metavar="N")

Training(sources).epochs     the value in force, an int
Training.epochs              the option: flag, variable, help
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import ClassVar, Final, Generic, Protocol, TypeVar, overload

from batchcal.core.readers import duration, size, switch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
PREFIX: Final = "BATCHCAL_"


class Option(Generic[T_co]):
    """One setting."""

    def __init__(
        self,
        read: Callable[[str, str], T_co],
        default: T_co,
        help: str,  # noqa: A002 - as Typer calls it
        *,
        metavar: str = "",
        panel: str | None = None,
        default_text: str = "",
    ) -> None:
        """Args:
        read: (text, name for messages) -> value; raises UsageError. See `core.readers`.
        help: description in one or two sentences.
        metavar: the form of its value: `N`, `TIME`, `SIZE`.
        panel: the group of its flag in the help.
        default_text: the default in words, if the value itself does not explain it.
        """
        self.read = read
        self.default = default
        self.help = help
        self.metavar = metavar
        self.panel = panel
        self._default_text = default_text
        self.table = self.key = ""

    def __set_name__(self, owner: type[Table], name: str) -> None:
        self.table, self.key = owner.name, name

    @overload
    def __get__(self, instance: None, owner: type[Table]) -> Option[T_co]: ...

    @overload
    def __get__(self, instance: Table, owner: type[Table]) -> T_co: ...

    def __get__(self, instance: Table | None, owner: type[Table]) -> Option[T_co] | T_co:
        return self if instance is None else instance.source.value(self)

    def checked(self, value: object) -> T_co:
        """Return a value from Python, checked by the same rules.

        Args:
            value: text, number or bool; sizes in bytes, times in seconds.

        Raises:
            UsageError: the value is out of range.
        """
        return self.read(f"{value}B" if self.read is size else _as_text(value), self.key.replace("_", "-"))

    @property
    def field(self) -> str:
        """Name of the value in Python and in the files that batchcal writes, with its unit: `memory_limit_bytes`."""
        return self.key + ("_bytes" if self.read is size else "_s" if self.read is duration else "")

    @property
    def flag(self) -> str:
        """`--time-limit`."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """`BATCHCAL_TIME_LIMIT`."""
        return PREFIX + self.key.upper()

    @property
    def is_switch(self) -> bool:
        """True if its flag takes no value."""
        return self.read is switch

    @property
    def default_text(self) -> str:
        """The default as help and reference print it. Empty for a switch that is off."""
        return self._default_text or ("" if self.default is None or self.default is False else str(self.default))

    @property
    def description(self) -> str:
        """The help, followed by the default."""
        return f"{self.help} (default: {self.default_text})" if self.default_text else self.help


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Without an exponent: durations do not accept one.
    return format(Decimal(repr(float(value))), "f") if isinstance(value, float) and math.isfinite(value) else str(value)


class ValueSource(Protocol):
    """Source of the values of tables."""

    def value(self, option: Option[T]) -> T: ...


class Table:
    """The settings of one TOML table: subclasses have a `name` and options."""

    name: ClassVar[str]

    def __init__(self, source: ValueSource) -> None:
        self.source = source

    @classmethod
    def options(cls) -> tuple[Option[object], ...]:
        """All options, in the order of definition."""
        return tuple(value for value in vars(cls).values() if isinstance(value, Option))
