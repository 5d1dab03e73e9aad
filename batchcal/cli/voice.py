"""How loud the command is, and in which language it speaks of errors."""

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
class Voice:
    """One for each run of the command line. Options turn it up or down while they are read."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    """Errors are one JSON document."""
    for_eval: bool = False
    """stdout is evaluated by a shell: a failure must be told there too."""
    settings: Settings | None = None
    """Those of the command, by which messages call them; None: not read yet."""
    held: list[str] | None = None
    """Lines that wait until it is certain that the command can be used; a usage error comes before them. None: none wait."""

    @staticmethod
    def of(arguments: Sequence[str]) -> Voice:
        """Judged before the arguments are parsed, so that an error in them is told right as well."""
        before_rest = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        formats = [value for name, value in pairwise(before_rest) if name == "--format"]
        formats += [name.partition("=")[2] for name in before_rest if name.startswith("--format=")]
        return Voice(
            as_json="--json" in before_rest or "json" in formats,
            for_eval="sh" in formats and before_rest[:1] == ["plan"],
        )

    def say(self, line: str) -> None:
        """A line of talk on stderr; what cannot be said is not said."""
        if self.quiet:
            return
        if self.held is not None:
            self.held.append(line)
        else:
            tell(line)

    def hold(self) -> None:
        """Keep lines until `release`."""
        self.held = [] if self.held is None else self.held

    def release(self, *, only: str = "") -> None:
        """Print what was held, and from now on every line at once.

        Args:
            only: how the lines begin that are printed.
        """
        held, self.held = self.held or [], None
        for line in held:
            if line.startswith(only):
                tell(line)


def as_output(text: str) -> str:
    """Lines that the user's code printed, marked as such."""
    return "\n".join(f"  | {line}" for line in text.splitlines())


def tell(text: str) -> None:
    """On stderr, whoever listens. A full or closed stderr is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
