"""How loud the command is, and in which language it speaks of errors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass
class Voice:
    """One for each run of the command line. Options turn it up or down while they are read."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    """Errors are one JSON document."""
    for_eval: bool = False
    """stdout is evaluated by a shell: a failure must be told there too."""

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
        if not self.quiet:
            tell(line)


def tell(text: str) -> None:
    """On stderr, whoever listens. A full or closed stderr is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
