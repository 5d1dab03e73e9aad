"""Output to stdout: the result, and nothing else. A reader that stops early (`| head`) ends it without an error."""

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
    """Print the text as it is.

    Raises:
        BatchcalError: stdout cannot be written (a full disk). A closed pipe is not an error: the rest is not needed.
    """
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        raise BatchcalError("the result could not be written to stdout", known=error.strerror or str(error)) from None


def render(renderables: Iterable[RenderableType]) -> None:
    """Print Rich renderables as wide as the terminal, elsewhere 80 columns wide (COLUMNS overrides this).

    Raises:
        BatchcalError: as `emit`.
    """
    from rich.console import Console

    terminal = sys.stdout.isatty()
    columns = os.environ.get("COLUMNS", "")
    # With COLUMNS=0, rich draws nothing.
    width = None if (terminal and columns != "0") or (columns.isdigit() and int(columns) > 0) else FALLBACK_WIDTH
    # Drawn into a buffer, so that stdout gets one write. A closed pipe or a full disk would interrupt rich while it draws.
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8", errors="replace", newline="")
    # FORCE_COLOR does not count: a log that is not a terminal gets no escape codes.
    console = Console(width=width, highlight=False, emoji=False, markup=False, force_terminal=terminal, file=buffer)
    for renderable in renderables:
        console.print(renderable)
    buffer.seek(0)
    emit("\n".join(line.rstrip() for line in buffer.read().splitlines()))


def be_lenient() -> None:
    """Print `?` for characters that the terminal cannot show. Replace streams that were closed before the start by /dev/null."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if callable(reconfigure):
            reconfigure(errors="replace")


def _discard_output() -> None:
    """Discard buffered output, so that Python's own flush at the end does not fail."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
