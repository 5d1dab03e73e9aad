"""What of a batch decides how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Composition:
    """A batch as it was collated, padding included."""

    samples: int
    padded_bytes: int
    """Of its tensors: samples x padded length x bytes a value."""
    group: str = ""
    """The task type that its samples have in common; `mixed`, or empty where the task has none."""
