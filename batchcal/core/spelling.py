"""Messages name a setting as the user named it: a flag, a variable, or a key of a file."""

from __future__ import annotations

import re
from typing import Final

from batchcal.core.errors import UsageError

FLAG: Final = "flag "
VARIABLE: Final = "env "
DEFAULT: Final = "default"
_VALUE: Final = r"(?:[ =](?!(?:and|or|with|in|where|without|above|below|of|to|for)\b)([^\s,;()]+))?"
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?|true|false")


def name_of(origin: str) -> str:
    """`--margin`, `BATCHCAL_MARGIN`, `x.toml [calibrate] margin`."""
    return origin.removeprefix(FLAG).removeprefix(VARIABLE)


def assignment(origin: str, value: str) -> str:
    """`--margin 15%`, `BATCHCAL_MARGIN=15%`, `margin = "15%" in x.toml [calibrate]`. Without a value: only the name."""
    name = name_of(origin)
    if origin.startswith(FLAG):
        return f"{name} {value}".rstrip()
    if origin.startswith(VARIABLE):
        return f"{name}={value}" if value else name
    place, _, key = name.rpartition(" ")
    text = value if _NUMBER.fullmatch(value) else f'"{value}"'
    return f"{key} = {text} in {place}" if value else f"{key} in {place}"


def begins_with(what: str, key: str) -> bool:
    """Return True if a message begins with the plain name of the setting `key`."""
    return what.startswith(tuple(f"{plain} " for plain in _plain(key)))


def _plain(key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((key.replace("_", "-"), key.replace("_", " "), key)))


def respelled(error: UsageError, *, flag: str, key: str, origin: str, prefix: bool = True) -> UsageError:
    """Return `error` about the setting `key` with the user's name for it in place of its flag or plain name.

    Args:
        flag: such as `--time-limit`.
        prefix: put the name in front of a message that does not contain it.
        origin: origin of the value, see `core.settings`.
    """
    if origin == DEFAULT:
        return error
    # Not within a longer flag: --margin is not a part of --margin-of-error.
    pattern = re.compile(rf"{re.escape(flag)}(?![\w-]){_VALUE}")
    try_ = pattern.sub(lambda match: assignment(origin, match.group(1) or ""), error.try_)
    name = name_of(origin)
    what = error.what
    for plain in (flag, *_plain(key)):
        if what.startswith(f"{plain} "):
            what = name + what.removeprefix(plain)
            break
    else:
        if prefix and not what.startswith(name) and not origin.startswith(FLAG):
            what = f"{name}: {what}"
    return UsageError(what, known=error.known, try_=try_)
