"""How much one process comes to hold by reading samples: measured over a few, extrapolated to all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from batchcal.core.units import MIB

SETTLED_SHARE: Final = 1 / 3
"""Of the samples: the first reads import decoders, open files and fill the allocator's free lists."""
NOISE_BYTES: Final = 1 * MIB
"""Growth between two readings that is not the samples'. Private memory of a forked worker over a tensor dataset moved by at most
0.4 MiB in 20 runs."""
KEPT_LEAST_BYTES: Final = 2 * MIB
"""A process that grows by less while it reads is not taken to keep its samples."""
PARTS: Final = 3
"""A cache grows in each of so many parts of the run; what an allocator keeps for reuse stops growing."""


class Point(NamedTuple):
    """One reading."""

    samples: int
    """Read so far by the process."""
    held_bytes: int


def at_most(points: Sequence[Point], samples: int, *, bound_bytes: int) -> int:
    """The largest growth since the first reading, by the time `samples` are read, that the readings allow.

    A forked worker copies a page of its parent with the first reference count that it writes there. That growth is close to
    linear at first and ends when all is copied, so that a line is an upper bound. Short runs over slow data leave a wide margin:
    their bound is the parent's memory.

    Args:
        bound_bytes: what can be copied.
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


def kept_per_sample(points: Sequence[Point]) -> float:
    """Bytes of each sample that the process keeps, by a cache for example. 0: none that the readings prove."""
    settled = _settled(points)
    if len(settled) <= PARTS:
        return 0.0
    marks = [settled[(len(settled) - 1) * part // PARTS] for part in range(PARTS + 1)]
    grown = marks[-1].held_bytes - marks[0].held_bytes
    read = marks[-1].samples - marks[0].samples
    steady = all(after.held_bytes - before.held_bytes > grown / (4 * PARTS) for before, after in pairwise(marks))
    return grown / read if read > 0 and grown >= KEPT_LEAST_BYTES and steady else 0.0


def _settled(points: Sequence[Point]) -> Sequence[Point]:
    """The readings after the first ones."""
    if len(points) < 2:
        return points
    from_ = points[0].samples + (points[-1].samples - points[0].samples) * SETTLED_SHARE
    return [point for point in points if point.samples >= from_]
