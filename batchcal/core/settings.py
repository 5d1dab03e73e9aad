"""Settings: flags > BATCHCAL_* > config file > project file > defaults. Each value has an origin.

Other modules read the files and pass them as tables. A value from any source is text until its option reads it, so that
`--margin 15%`, `BATCHCAL_MARGIN=15%` and `margin = "15%"` mean the same.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

from batchcal.core.errors import UsageError
from batchcal.core.option import PREFIX, Option, Table
from batchcal.core.spelling import DEFAULT, FLAG, VARIABLE, begins_with, respelled

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
TomlTable = Mapping[str, object]
"""A table of a TOML file."""

OTHER_VARIABLES: Final = ("BATCHCAL_CALIBRATION", "BATCHCAL_KEY_FILE")
"""Variables of batchcal that are not settings."""
_OURS: Final = ("BATCHCAL_PLAN_", "BATCHCAL_REEXEC")
"""Variables that batchcal sets itself: for a plan in force, for a restarted process."""


@dataclass(frozen=True)
class Setting(Generic[T_co]):
    """A value with its origin: `flag --margin`, `env BATCHCAL_MARGIN`, `x.toml [calibrate] margin`, `default`."""

    value: T_co
    origin: str


@dataclass(frozen=True)
class SettingSource:
    """The tables of one file."""

    name: str
    """Path in the user's notation: `configs/x.toml`."""
    tables: Mapping[str, TomlTable]
    prefix: str = ""
    """`tool.batchcal.` in a pyproject.toml."""

    def place(self, table: str, key: str) -> str:
        """`configs/x.toml [calibrate] margin`."""
        return f"{self.name} [{self.prefix}{table}] {key}"


class Settings:
    """All sources of values, in order of precedence."""

    TABLES: ClassVar[tuple[type[Table], ...]] = ()
    """Tables of the settings. See `values.settings`."""

    def __init__(
        self,
        *,
        flags: Mapping[str, str | None] | None = None,
        flag_names: Mapping[str, str] | None = None,
        environ: Mapping[str, str],
        files: Iterable[SettingSource] = (),
    ) -> None:
        """Args:
            flags: text by key, as typed. None: not given.
            flag_names: names of flags that differ from their key, by key.
            files: highest precedence first.

        Raises:
            UsageError: a file has an unknown key.
        """
        self._flags = {key: text for key, text in (flags or {}).items() if text is not None}
        self._flag_names = flag_names or {}
        self._environ = environ
        self._files = tuple(files)
        for file in self._files:
            _check_keys(file, self.keys())

    @classmethod
    def options(cls) -> tuple[Option[object], ...]:
        """All options of all tables."""
        return tuple(option for table in cls.TABLES for option in table.options())

    @classmethod
    def keys(cls) -> dict[str, tuple[str, ...]]:
        """The keys of each table."""
        return {table.name: tuple(option.key for option in table.options()) for table in cls.TABLES}

    def of(self, option: Option[T]) -> Setting[T]:
        """Return the value in force with its origin.

        Raises:
            UsageError: the value cannot be read. The message contains its origin.
        """
        name = option.key.replace("_", "-")
        if option.key in self._flags:
            flag = self.flag_of(option)
            return _read(option, flag.removeprefix("--"), self._flags[option.key], f"{FLAG}{flag}")
        # An empty variable counts as not set: `docker -e NAME=` and a shell's `NAME= command` mean that.
        text = self._environ.get(option.variable)
        if text:
            return _read(option, name, text, f"{VARIABLE}{option.variable}")
        for file in self._files:
            table = file.tables.get(option.table, {})
            if option.key in table:
                place = file.place(option.table, option.key)
                return _read(option, name, _as_text(table[option.key], place, option.key), place)
        return Setting(option.default, DEFAULT)

    def flag_of(self, option: Option[T]) -> str:
        """`--samples`, or `--calibration-samples` if that is its name."""
        return self._flag_names.get(option.key, option.flag)

    def origin_of(self, option: Option[T]) -> str:
        """Origin of the value, even if the value cannot be read."""
        if option.key in self._flags:
            return f"{FLAG}{self.flag_of(option)}"
        if self._environ.get(option.variable):
            return f"{VARIABLE}{option.variable}"
        places = (file.place(option.table, option.key) for file in self._files if option.key in file.tables.get(option.table, {}))
        return next(places, DEFAULT)

    def respelled(self, error: UsageError) -> UsageError:
        """Return `error` with the user's own names for the settings that it proposes to change."""
        text = f"{error.what}\n{error.try_}"
        matches = ((re.search(rf"{re.escape(self.flag_of(option))}(?![\w-])", text), option) for option in self.options())
        places = {option.key: (match.start(), option) for match, option in matches if match is not None}
        # First the setting with which the message begins: it is the subject. Then the others, in order of appearance.
        subjects = sorted(places.values(), key=lambda place: (not begins_with(error.what, place[1].key), place[0]))
        for number, (_, option) in enumerate(subjects):
            flag, origin = self.flag_of(option), self.origin_of(option)
            error = respelled(error, flag=flag, key=option.key, origin=origin, prefix=number == 0)
        return error

    def value(self, option: Option[T]) -> T:
        """The value without its origin."""
        return self.of(option).value

    def is_set(self, option: Option[T]) -> bool:
        """True if a flag, a variable or a file sets it."""
        return self.origin_of(option) != DEFAULT

    def check(self, table: type[Table]) -> None:
        """Read every value of `table`.

        Raises:
            UsageError: a value cannot be read.
        """
        for option in table.options():
            self.of(option)

    def non_defaults(self) -> list[tuple[str, str, str, str]]:
        """Return (table, key, value, origin) of every setting that is set, as `of` reads it."""
        settings = ((option, self.of(option)) for option in self.options())
        return [
            (option.table, option.key, str(setting.value), setting.origin)
            for option, setting in settings
            if setting.origin != DEFAULT
        ]


def unknown_variables(environ: Mapping[str, str], options: Iterable[Option[object]]) -> tuple[str, ...]:
    """Return a sentence for each BATCHCAL_* variable that is not read. Otherwise a misspelt setting would be ignored silently."""
    names = [*OTHER_VARIABLES, *(option.variable for option in options)]
    unknown = (name for name in sorted(environ) if name.startswith(PREFIX) and not name.startswith(_OURS) and name not in names)
    return tuple(f"the variable {name} is not known{_suggestion(name, names)}; it has no effect" for name in unknown)


def _suggestion(name: str, names: Iterable[str]) -> str:
    # Without the prefix, which makes all names similar.
    close = difflib.get_close_matches(name.removeprefix(PREFIX), [candidate.removeprefix(PREFIX) for candidate in names], n=1)
    return f" (did you mean {PREFIX}{close[0]}?)" if close else ""


def _read(option: Option[T], name: str, text: str, origin: str) -> Setting[T]:
    try:
        return Setting(option.read(text, name), origin)
    except UsageError as error:
        raise respelled(error, flag=f"--{name}", key=option.key, origin=origin) from None


def _as_text(value: object, place: str, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return repr(value)
    raise UsageError(
        f"{place} is not a single value",
        known=f"it is {value!r}; a setting is a single string, number, true or false",
        try_=f"{key} = {_single_value(value)} in {place.removesuffix(f' {key}')}",
    )


def _single_value(value: object) -> str:
    """The value to write instead of `value`, as TOML: the first item of a list, otherwise a placeholder."""
    if isinstance(value, list) and value and isinstance(value[0], str | int | float):
        return json.dumps(value[0])
    return "VALUE"


def _check_keys(file: SettingSource, keys: Mapping[str, tuple[str, ...]]) -> None:
    for table in keys:
        for key in file.tables.get(table, {}):
            if key in keys[table]:
                continue
            owner = next((name for name in keys if key in keys[name]), None)
            if owner is not None:
                raise UsageError(
                    f"{file.name}: {key} does not belong to [{file.prefix}{table}]",
                    known=f"it is a key of [{file.prefix}{owner}]",
                    try_=f"[{file.prefix}{owner}]\n{key} = {file.tables[table][key]!r}",
                )
            raise UsageError(
                f"{file.name}: unknown key {key!r} in [{file.prefix}{table}]" + _did_you_mean(key, keys[table]),
                known=f"valid keys: {', '.join(keys[table])}",
                try_=_instead(key, keys[table]),
            )


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _instead(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"{close[0]} instead of {name}" if close else f"remove {name}"
