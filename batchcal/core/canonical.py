"""JSON with one canonical rendering and a strict reader.

Python's own reader accepts NaN, turns 1e999 into infinity, keeps the last of two equal keys and guesses UTF-16. Two programs
could then read different values from one signed file, so this reader refuses all of these.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""Values of a JSON document."""

BadJsonReason = Literal["too-large", "encoding", "syntax", "duplicate-key", "number", "too-deep", "surrogate", "type"]

MAX_BYTES: Final = 4 * 1024 * 1024
"""A calibration holds tens of kilobytes. The worst 4 MiB (of empty objects) take 0.9 s to refuse."""
MAX_DEPTH: Final = 64
"""pydantic refuses to write values nested deeper than 255; ours are 8 deep."""
MAX_DIGITS: Final = 40
"""2^64 has 20 digits. The time that Python takes is quadratic in the digits, and it stops at 4300."""


class BadJson(ValueError):
    """A document that we neither read nor write. `reason` is for programs, `detail` for people."""

    def __init__(self, reason: BadJsonReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: BadJsonReason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def dumps(value: JSON) -> bytes:
    """Return the canonical rendering: sorted keys, one space of indentation per level, UTF-8, a newline at the end.

    Raises:
        BadJson: NaN, infinity, a lone surrogate, a value that JSON does not support.
    """
    return _encode(value, indent=1) + b"\n"


def dumps_line(value: JSON) -> bytes:
    """Return the same without spaces or newlines. Used for hashes, signatures and files with one document per line.

    Raises:
        BadJson: as `dumps`.
    """
    return _encode(value, indent=None)


def _encode(value: JSON, *, indent: int | None) -> bytes:
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        text = json.dumps(value, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
        return text.encode()
    except UnicodeEncodeError:
        raise BadJson("surrogate", "a text contains half of a surrogate pair") from None
    except RecursionError:
        raise BadJson("too-deep", f"nested deeper than {MAX_DEPTH} levels") from None
    except TypeError as error:
        raise BadJson("type", str(error)) from None
    except ValueError as error:
        raise BadJson("number", str(error)) from None


def loads(data: bytes, *, max_bytes: int = MAX_BYTES) -> JSON:
    """Return the value in `data`.

    Raises:
        BadJson: over `max_bytes`; not UTF-8, or with a byte-order mark; not JSON; two equal keys in one object; NaN or
            infinite numbers, also such as 1e999; integers of more than 40 digits; nested deeper than 64; lone surrogates.
    """
    if len(data) > max_bytes:
        raise BadJson("too-large", f"{len(data)} bytes, more than {max_bytes}")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise BadJson("encoding", "begins with a byte-order mark")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadJson("encoding", f"not UTF-8 at byte {error.start}") from None
    try:
        value: JSON = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except BadJson:
        raise
    except RecursionError:
        raise BadJson("too-deep", f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise BadJson("syntax", f"not JSON: {error}") from None
    _check_depth(value)
    # Strict UTF-8 contains no surrogates, so that one can only come from an escape.
    if "\\ud" in text or "\\uD" in text:
        _encode(value, indent=None)
    return value


def _unique(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(key_name, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise BadJson("duplicate-key", f"the key {key_name[:80]!r} occurs twice in one object")
    return result


def _no_constant(name: str) -> float:
    raise BadJson("number", f"{name} is not a valid JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadJson("number", f"{text[:40]} is too large for a number")
    return number


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise BadJson("number", f"an integer has {len(text)} digits, more than {MAX_DIGITS}")
    return int(text)


def _check_depth(value: JSON) -> None:
    level: list[JSON] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for container in level for child in _children(container) if isinstance(child, (dict, list))]
        if not level:
            return
    raise BadJson("too-deep", f"nested deeper than {MAX_DEPTH} levels")


def _children(value: JSON) -> Iterable[JSON]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
