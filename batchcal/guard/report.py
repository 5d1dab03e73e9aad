"""What a child raised, as values that travel: the whole cause chain, classes first, texts capped."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from batchcal.core.errors import BatchcalError
from batchcal.core.values import Frozen
from batchcal.guard.outcome import Phase

DEPTH: Final = 10
TEXT_LIMIT: Final = 64 * 1024
_PACKAGE: Final = Path(__file__).resolve().parents[1]
_OURS: Final = f"{_PACKAGE}{os.sep}"
_EXAMPLES: Final = f"{_PACKAGE / 'workload' / 'examples'}{os.sep}"


class RaisedLink(Frozen):
    """One exception of the chain."""

    type_name: str
    """`torch.OutOfMemoryError`."""
    bases: tuple[str, ...]
    """Names of every class it derives from, itself first."""
    message: str
    errno: int | None = None
    told: tuple[str, str, str] | None = None
    """Of our own errors: what happened, what is known, what to type next."""


class Raised(Frozen):
    """An exception with everything it came from, outermost first."""

    chain: tuple[RaisedLink, ...]
    traceback: str
    phase: Phase

    @property
    def headline(self) -> str:
        """`ValueError: shapes do not match`, the first line only."""
        link = self.chain[0]
        if link.told is not None:
            return link.told[0]
        message = link.message.strip().splitlines()
        return f"{link.type_name}: {message[0]}" if message else link.type_name


def describe(error: BaseException, phase: Phase) -> Raised:
    """Everything worth knowing of `error`."""
    links: list[RaisedLink] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(links) < DEPTH:
        seen.add(id(current))
        links.append(
            RaisedLink(
                type_name=_name(type(current)),
                bases=tuple(_name(base) for base in type(current).__mro__),
                message=_text(current),
                errno=current.errno if isinstance(current, OSError) else None,
                told=(current.what, current.known, current.try_) if isinstance(current, BatchcalError) else None,
            )
        )
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    try:
        text = "".join(traceback.format_exception(type(error), error, _from_user_code(error.__traceback__)))
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may do anything
        text = f"(the traceback could not be formatted: {type(broken).__name__})"
    return Raised(chain=tuple(links), traceback=text[-TEXT_LIMIT:], phase=phase)


def let_go(error: BaseException) -> None:
    """Clears the frames that `error` and what it came from hold, so that their tensors are free again."""
    current: BaseException | None = error
    for _ in range(DEPTH):
        if current is None:
            return
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """`trace` without our own frames on top of the user's; all of it where there is no frame of his."""
    inner = trace
    while inner is not None and is_ours(inner.tb_frame.f_code.co_filename):
        inner = inner.tb_next
    return inner or trace


def is_ours(file_name: str) -> bool:
    """A file of this package, but not an example, which stands for the user's code."""
    return file_name.startswith(_OURS) and not file_name.startswith(_EXAMPLES)


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:TEXT_LIMIT]
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may do anything
        return f"(its text could not be had: {type(broken).__name__})"
