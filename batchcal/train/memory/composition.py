"""Properties of a batch that determine its memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Composition:
    """Size of a collated batch, padding included."""

    samples: int
    padded_bytes: int
    """Bytes of its tensors: samples x padded length x bytes per value."""
    group: str = ""
    """Common task type of its samples, or `mixed`. Empty if the task has no types."""
