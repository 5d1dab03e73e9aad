"""stdout: the result, and nothing else. A reader who leaves early (`| head`) ends it quietly."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from batchcal.core.errors import BatchcalError

if TYPE_CHECKING:
    from rich.console import RenderableType

FALLBACK_WIDTH = 80


def emit(text: str) -> None:
    """Text as it is.

    Raises:
        BatchcalError: stdout cannot take it (a full disk). A closed pipe is none: nobody wants the rest.
    """
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _listen_no_more()
    except OSError as error:
        _listen_no_more()
        raise BatchcalError("the result could not be written to stdout", known=error.strerror or str(error)) from None


def render(renderables: Iterable[RenderableType]) -> None:
    """Rich renderables; as wide as the terminal, 80 columns elsewhere (COLUMNS says otherwise).

    Raises:
        BatchcalError: as `emit`.
    """
    from rich.console import Console

    terminal = sys.stdout.isatty()
    asked = os.environ.get("COLUMNS", "")
    # rich takes COLUMNS=0 at its word, and draws nothing.
    width = None if (terminal and asked != "0") or (asked.isdigit() and int(asked) > 0) else FALLBACK_WIDTH
    # Drawn aside, so that stdout sees one write: rich would meet a closed pipe or a full disk in the middle of its own work.
    drawn = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8", errors="replace", newline="")
    # Not FORCE_COLOR: a log that is no terminal gets no escape codes.
    console = Console(width=width, highlight=False, emoji=False, markup=False, force_terminal=terminal, file=drawn)
    for renderable in renderables:
        console.print(renderable)
    drawn.seek(0)
    emit("\n".join(line.rstrip() for line in drawn.read().splitlines()))


def be_lenient() -> None:
    """A terminal that cannot show a character shows a question mark; a stream that was closed before we began takes all."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if callable(reconfigure):
            reconfigure(errors="replace")


def _listen_no_more() -> None:
    """What is still buffered goes nowhere, so that Python's own flush at the end does not fail."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
