"""Split an effective batch into micro-batches: exact sum, as few as possible, as even as possible."""

from __future__ import annotations

import math

from batchcal.calibration.records.size_rule import SizeRule


def split(total: int, capacity: int, *, multiple_of: int = 1) -> tuple[int, ...]:
    """Return sizes that sum to `total`: none above `capacity`, as few as possible, the larger ones first.

    The sizes are even, not full ones and a rest: 100 with a capacity of 32 is 25 x 4, which has a lower peak than
    32 + 32 + 32 + 4 and is as fast; 97 is 25 + 24 + 24 + 24. Sizes differ by at most one.

    With `multiple_of`, they are multiples of it (and differ by at most one multiple) if `total` is a multiple and that needs no
    further step. For any other total, multiples have no exact sum, and the exact sum has priority.

    Raises:
        ValueError: `total`, `capacity` or `multiple_of` is below 1. User input is checked before.
    """
    if total < 1 or capacity < 1 or multiple_of < 1:
        raise ValueError(f"total {total}, capacity {capacity} and multiple_of {multiple_of} must be at least 1")
    steps = -(-total // capacity)
    units = capacity // multiple_of
    if total % multiple_of == 0 and units and -(-(total // multiple_of) // units) == steps:
        return tuple(size * multiple_of for size in _even(total // multiple_of, steps))
    return _even(total, steps)


def split_above(least: int, total: int, largest: int, most: int, *, multiple_of: int = 1) -> tuple[int, ...]:
    """Split like `split`, with no size below `least`. To avoid smaller sizes, use sizes up to `most`. Empty: there are none."""
    sizes = split(total, largest, multiple_of=multiple_of)
    if sizes[-1] >= least:
        return sizes
    sizes = split(total, -(-total // max(1, total // least)), multiple_of=multiple_of)
    return sizes if sizes[0] <= most and sizes[-1] >= least else ()


def split_by(rule: SizeRule, total: int, largest: int, *, most: int | None = None) -> tuple[int, ...]:
    """Return sizes that the task accepts and that sum to `total`: none above `largest`, as few as possible. Empty: impossible.

    If a process accepts batches of one size only, all are equal. The size is then the divisor of `total` that is nearest to
    `largest`. It may be larger, up to `most`: a prime total has no divisors except itself and 1.
    """
    most = max(largest, most or largest)
    if rule.one_size:
        sizes = [size for size in range(1, min(most, total) + 1) if total % size == 0 and rule.admits(size)]
        if not sizes:
            return ()
        size = min(sizes, key=lambda size: (abs(math.log(size / largest)), -size))
        return (size,) * (total // size)
    units, rest = divmod(total, rule.multiple_of)
    at_once = rule.at_most(largest) // rule.multiple_of
    if rest or not at_once:
        return ()
    parts = tuple(size * rule.multiple_of for size in _even(units, -(-units // at_once)))
    return parts if all(map(rule.admits, parts)) else ()


def nearest_total(rule: SizeRule, total: int, largest: int, *, most: int | None = None) -> int | None:
    """Return the total nearest to `total` that `split_by` can split, the larger of two. None: none is near."""
    for off in range(total + 2 * largest):
        for near in (total + off, total - off):
            sizes = split_by(rule, near, largest, most=most) if near > 0 else ()
            if sizes and (not rule.one_size or near <= largest or max(sizes) * 2 > largest):
                return near
    return None


def _even(total: int, parts: int) -> tuple[int, ...]:
    size, larger = divmod(total, parts)
    return (size + 1,) * larger + (size,) * (parts - larger)
