"""An effective batch as micro-batches: exact sum, as few as possible, as even as possible."""

from __future__ import annotations


def split(total: int, capacity: int, *, multiple_of: int = 1) -> tuple[int, ...]:
    """Sizes that sum to `total`, none above `capacity`, as few as there can be, the larger ones first.

    Even sizes rather than full ones and a rest: 100 with a capacity of 32 is 25 x 4, which peaks lower than 32 + 32 + 32 + 4 and
    is as fast; 97 is 25 + 24 + 24 + 24. Sizes differ by at most one.

    With `multiple_of` they are multiples of it (and differ by at most one multiple) where `total` is one and that costs no
    further step; a sum cannot be made exact otherwise, and exact comes first.

    Raises:
        ValueError: `total`, `capacity` or `multiple_of` is below 1. What a user typed is checked before.
    """
    if total < 1 or capacity < 1 or multiple_of < 1:
        raise ValueError(f"total {total}, capacity {capacity} and multiple_of {multiple_of} must be at least 1")
    steps = -(-total // capacity)
    units = capacity // multiple_of
    if total % multiple_of == 0 and units and -(-(total // multiple_of) // units) == steps:
        return tuple(size * multiple_of for size in _even(total // multiple_of, steps))
    return _even(total, steps)


def _even(total: int, parts: int) -> tuple[int, ...]:
    size, larger = divmod(total, parts)
    return (size + 1,) * larger + (size,) * (parts - larger)
