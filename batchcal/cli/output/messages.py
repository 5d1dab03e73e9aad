"""Verbosity of a command and format of its error messages."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchcal.values.settings import Settings


@dataclass
class Messages:
    """Output settings of one run of the command line. Options change them while they are parsed."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    """Errors are one JSON document."""
    for_eval: bool = False
    """A shell evaluates stdout: a failure must be reported there, too."""
    settings: Settings | None = None
    """Settings of the command, which give messages their names. None: not read yet."""
    command: tuple[str, ...] | None = None
    """Words after `--`, for a verb that takes a command instead of a task. None: there is no `--`."""
    pending: list[str] | None = None
    """Lines that wait until the command is known to be usable; a usage error is printed before them. None: no line waits."""

    @staticmethod
    def of(arguments: Sequence[str]) -> Messages:
        """Derive the settings from the arguments before they are parsed, so that errors in them have the right format, too."""
        before_rest = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        formats = [value for name, value in pairwise(before_rest) if name == "--format"]
        formats += [name.partition("=")[2] for name in before_rest if name.startswith("--format=")]
        return Messages(
            as_json="--json" in before_rest or "json" in formats,
            for_eval="sh" in formats and before_rest[:1] == ["plan"],
        )

    def print(self, line: str) -> None:
        """Print a line on stderr, unless quiet. Errors of stderr are ignored."""
        if self.quiet:
            return
        if self.pending is not None:
            self.pending.append(line)
        else:
            show_message(line)

    def hold(self) -> None:
        """Hold lines until `release`."""
        self.pending = [] if self.pending is None else self.pending

    def release(self, *, only: str = "") -> None:
        """Print the held lines, and from now on every line at once.

        Args:
            only: prefix of the held lines that are printed.
        """
        lines, self.pending = self.pending or [], None
        for line in lines:
            if line.startswith(only):
                show_message(line)


def as_output(text: str) -> str:
    """Return lines that the user's code printed, marked as such."""
    return "\n".join(f"  | {line}" for line in text.splitlines())


def show_message(text: str) -> None:
    """Print text on stderr. A full or closed stderr is not an error."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
