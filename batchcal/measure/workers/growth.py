"""Memory that one process accumulates by reading samples: measured over a few samples, extrapolated to all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from batchcal.core.units import MIB

SETTLED_SHARE: Final = 1 / 3
"""Share of the samples that is left out: the first reads import decoders, open files and fill the allocator's free lists."""
NOISE_BYTES: Final = 1 * MIB
"""Growth between two readings that samples do not cause, bytes. Private memory of a forked worker over a tensor dataset changed
by at most 0.4 MiB in 20 runs."""
KEPT_LEAST_BYTES: Final = 2 * MIB
"""Bytes. A process that grows by less while it reads is assumed to keep no samples."""
PARTS: Final = 3
"""Number of parts of a run. A cache grows in each of them; memory that an allocator keeps for reuse stops growing."""


class MemoryPoint(NamedTuple):
    """One reading."""

    samples: int
    """Number of samples that the process has read so far."""
    held_bytes: int


def at_most(points: Sequence[MemoryPoint], samples: int, *, bound_bytes: int) -> int:
    """Return the largest growth that the readings allow, from the first reading until `samples` are read, bytes.

    A forked worker copies a page of its parent with the first reference count that it writes there. That growth is close to
    linear at first and ends when all is copied, so a line is an upper bound. Short runs over slow data leave a wide margin: their
    bound is the parent's memory.

    Args:
        bound_bytes: memory that can be copied.
    """
    if not points:
        return bound_bytes
    before = max(0, points[-1].held_bytes - points[0].held_bytes)
    bound_bytes = max(before, bound_bytes)
    settled = _settled(points)
    read = settled[-1].samples - settled[0].samples
    rest = max(0, samples - points[-1].samples)
    if read <= 0:
        return bound_bytes if rest else before
    grown = max(0, settled[-1].held_bytes - settled[0].held_bytes)
    return min(bound_bytes, before + int((grown + NOISE_BYTES) / read * rest))


def kept_per_sample(points: Sequence[MemoryPoint]) -> float:
    """Return the bytes of each sample that the process keeps, for example in a cache. 0: the readings prove none."""
    settled = _settled(points)
    if len(settled) <= PARTS:
        return 0.0
    marks = [settled[(len(settled) - 1) * part // PARTS] for part in range(PARTS + 1)]
    grown = marks[-1].held_bytes - marks[0].held_bytes
    read = marks[-1].samples - marks[0].samples
    steady = all(after.held_bytes - before.held_bytes > grown / (4 * PARTS) for before, after in pairwise(marks))
    return grown / read if read > 0 and grown >= KEPT_LEAST_BYTES and steady else 0.0


def _settled(points: Sequence[MemoryPoint]) -> Sequence[MemoryPoint]:
    """Return the readings after the first ones."""
    if len(points) < 2:
        return points
    from_ = points[0].samples + (points[-1].samples - points[0].samples) * SETTLED_SHARE
    return [point for point in points if point.samples >= from_]
