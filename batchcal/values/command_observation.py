"""Observation of one run of a command as it is."""

from __future__ import annotations

import re
import shlex
from typing import Literal

from batchcal.core.values import Record


class CommandObservation(Record):
    """Memory, speed and batch size of a command in one run of some optimizer steps."""

    kind: Literal["command-observation"] = "command-observation"
    format: int = 1
    words: tuple[str, ...]
    """The command line. Secrets are hidden."""
    steps: int
    """Complete optimizer steps of every process."""
    micro_batches: int
    """Backward passes per optimizer step of one process."""
    world_size: int
    rows: float | None
    """Rows that the loaders of all processes returned per optimizer step. None: no loader was observed."""
    step_s: float
    """Median seconds of an optimizer step."""
    samples_per_s: float | None
    wait_share: float
    """Share of a step spent waiting for batches."""
    loader_workers: int
    threads: int
    """Intra-op threads of one process."""
    allocator: str
    peak_bytes: int
    """Peak memory of all processes together."""
    budget_bytes: int

    def likely_batch_size(self) -> str | None:
        """Return the word or the pair of words that sets the batch size: its number equals the rows of a micro-batch."""
        place = self._place()
        if place is None:
            return None
        word = self.words[place]
        option = self.words[place - 1] if place and self.words[place - 1].startswith("-") and "=" not in word else ""
        return f"{option} {word}".strip()

    def with_placeholder(self) -> str:
        """Return the command line with `{batch_size}` in place of its batch size. Empty: its place is unknown."""
        place = self._place()
        if place is None:
            return ""
        words = list(self.words)
        name, equals, _ = words[place].rpartition("=")
        words[place] = f"{name}{equals}{{batch_size}}"
        return shlex.join(words).replace("'{batch_size}'", "{batch_size}")

    def _place(self) -> int | None:
        if self.rows is None:
            return None
        rows = round(self.rows / self.micro_batches / self.world_size)
        places = [place for place, word in enumerate(self.words) if word.rpartition("=")[2] == str(rows)]
        return min(places, key=lambda place: not self._names_a_batch(place), default=None)

    def _names_a_batch(self, place: int) -> bool:
        """True if the word or the option before it is named like a batch size."""
        return re.search(r"batch|bs", f"{self.words[place - 1] if place else ''} {self.words[place]}", re.IGNORECASE) is not None
