"""Exception of a child, as values that can be sent: the complete cause chain, classes first, texts cut to a limit."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from batchcal.core.errors import BatchcalError
from batchcal.core.values import Frozen
from batchcal.guard.outcome import Phase

DEPTH: Final = 10
TEXT_LIMIT: Final = 64 * 1024
HEADLINE_LIMIT: Final = 1000
"""Characters of the line that names an error, which messages quote. The traceback has the complete line."""
FRAMES: Final = 200
"""Number of last frames of a traceback. A recursion with a raised limit has a million frames, which take minutes to format."""
READING: Final = "while reading sample"
"""Start of a note of an error that names the sample of the dataset that was read."""
STACKING: Final = "while torch's default collate function stacked samples"
"""Start of a note of an error without a collate function: the samples do not form a batch by themselves."""
COLLATE: Final = (
    "Task(collate_fn=...): a function that makes one batch from a list of samples: it pads or crops samples of different sizes "
    "and drops samples that are None"
)
"""Suggestion for the user in this case."""
_FROM_WORKER: Final = re.compile(r"Caught \S+ in DataLoader worker process (\d+)\.\nOriginal Traceback")
"""Start of torch's own message. The traceback of the worker follows, and ends with the error and its notes."""
_PACKAGE: Final = Path(__file__).resolve().parents[2]
_OURS: Final = f"{_PACKAGE}{os.sep}"
_EXAMPLES: Final = f"{_PACKAGE / 'workload' / 'examples'}{os.sep}"


class RaisedLink(Frozen):
    """One exception of the chain."""

    type_name: str
    """`torch.OutOfMemoryError`."""
    bases: tuple[str, ...]
    """Names of its class and of all base classes, its own class first."""
    message: str
    errno: int | None = None
    sample: str = ""
    """The note about the sample that was read, or about the stacking of samples."""
    told: tuple[str, str, str] | None = None
    """Texts of an error of batchcal: the problem, the known facts, the suggestion. None: another error."""

    def is_a(self, kind: type[BaseException]) -> bool:
        """Return True if the exception was an instance of `kind`."""
        return _name(kind) in self.bases


class Raised(Frozen):
    """An exception with its causes, outermost first."""

    chain: tuple[RaisedLink, ...]
    traceback: str
    phase: Phase

    @property
    def headline(self) -> str:
        """First line of the error, with the sample that was read: `ValueError: shapes do not match`."""
        link = self.chain[0]
        return link.told[0] if link.told is not None else _headline(link.type_name, link.message, link.sample)


def headline(error: BaseException) -> str:
    """First line of the error, with the sample that was read: `ValueError: shapes do not match`. For a worker: its own error."""
    return _headline(_name(type(error)), _text(error), _sample(error))


def _headline(type_name: str, message: str, sample: str) -> str:
    lines = message.strip().splitlines()
    text = f"{type_name}: {lines[0]}" if lines else type_name
    worker = _FROM_WORKER.match(message)
    if worker is not None:
        ending = lines[max(place for place, line in enumerate(lines) if line.startswith((" ", "Original "))) + 1 :]
        text = f"{ending[0] if ending else type_name}, in DataLoader worker {worker[1]}"
        sample = next((line for line in ending if line.startswith((READING, STACKING))), "")
    text = text if len(text) <= HEADLINE_LIMIT else f"{text[:HEADLINE_LIMIT]}..."
    return f"{text}, {sample}" if sample else text


def describe(error: BaseException, phase: Phase) -> Raised:
    """Return `error` with its causes and its traceback."""
    shorten(error)
    links: list[RaisedLink] = []
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in visited and len(links) < DEPTH:
        visited.add(id(current))
        links.append(
            RaisedLink(
                type_name=_name(type(current)),
                bases=tuple(_name(base) for base in type(current).__mro__),
                message=_text(current),
                errno=current.errno if isinstance(current, OSError) else None,
                sample=_sample(current),
                told=_texts_of(current) if isinstance(current, BatchcalError) else None,
            )
        )
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    try:
        trace = _from_user_code(error.__traceback__)
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may do anything
        text = f"(the traceback could not be formatted: {type(broken).__name__})"
    return Raised(chain=tuple(links), traceback=_as_utf8(text[-TEXT_LIMIT:]), phase=phase)


def _texts_of(error: BatchcalError) -> tuple[str, str, str]:
    return _as_utf8(error.what), _as_utf8(error.known), _as_utf8(error.try_)


def _sample(error: BaseException) -> str:
    notes: object = getattr(error, "__notes__", ())
    return (
        next((note for note in notes if isinstance(note, str) and note.startswith((READING, STACKING))), "")
        if isinstance(notes, list)
        else ""
    )


def shorten(error: BaseException) -> None:
    """Cut the tracebacks of `error` and its causes to the last FRAMES."""
    current: BaseException | None = error
    for _ in range(DEPTH):
        if current is None:
            return
        current.__traceback__ = _last(current.__traceback__)
        current = current.__cause__ or current.__context__


def _last(trace: TracebackType | None) -> TracebackType | None:
    length, frame = 0, trace
    while frame is not None:
        length, frame = length + 1, frame.tb_next
    for _ in range(length - FRAMES):
        trace = trace.tb_next if trace is not None else None
    return trace


def free_frames(error: BaseException) -> None:
    """Clear the frames that `error` and its causes hold, so that their tensors are freed."""
    current: BaseException | None = error
    for _ in range(DEPTH):
        if current is None:
            return
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """`trace` without the frames of batchcal above the user's frames. The complete `trace` if it has no frame of the user."""
    inner = trace
    while inner is not None and is_ours(inner.tb_frame.f_code.co_filename):
        inner = inner.tb_next
    return inner or trace


def is_ours(file_name: str) -> bool:
    """Return True for a file of this package, but not for an example, which represents the user's code."""
    return file_name.startswith(_OURS) and not file_name.startswith(_EXAMPLES)


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _as_utf8(text: str) -> str:
    """Write lone surrogates as `\\udcff`. Python has them in a file name that is not UTF-8; JSON has none."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(error: BaseException) -> str:
    try:
        return _as_utf8(str(error)[:TEXT_LIMIT])
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may do anything
        return f"(the text of the error could not be read: {type(broken).__name__})"
