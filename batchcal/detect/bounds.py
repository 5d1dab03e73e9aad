"""Bounds of a number from several sources; the lowest applies. All bounds are kept, so that the result can be explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from batchcal.core.values import Frozen
from batchcal.detect.environment import Candidate, Fact


class Bound(Frozen):
    """A bound from one source."""

    value: float
    learned_from: str
    """A file, a variable or a call that the user can check: `/sys/fs/cgroup/memory.max`."""
    because: str
    """Effect of this bound, as the first half of a sentence: `above it, the kernel kills`."""


def least_cores(bounds: Sequence[Bound], show: Callable[[float], str]) -> Fact[float]:
    """Return the lowest of `bounds` (at least one) as a fact about cores."""
    least = _least(bounds)
    return Fact[float](
        value=least.value, learned_from=least.learned_from, why=_why(least, bounds, show), considered=_considered(bounds)
    )


def least_count(bounds: Sequence[Bound], show: Callable[[float], str]) -> Fact[int]:
    """Return the lowest of `bounds` (at least one) as a fact about integers: bytes, files, processes."""
    least = _least(bounds)
    return Fact[int](
        value=int(least.value), learned_from=least.learned_from, why=_why(least, bounds, show), considered=_considered(bounds)
    )


def _least(bounds: Sequence[Bound]) -> Bound:
    return min(bounds, key=lambda bound: bound.value)


def _why(least: Bound, bounds: Sequence[Bound], show: Callable[[float], str]) -> str:
    other_bounds = sorted((bound for bound in bounds if bound is not least), key=lambda bound: bound.value)
    if not other_bounds:
        return least.because
    following = other_bounds[0]
    relation = "equal to" if following.value == least.value else "less than"
    return f"{least.because}; {relation} the {show(following.value)} of {following.learned_from}"


def _considered(bounds: Sequence[Bound]) -> tuple[Candidate, ...]:
    return tuple(Candidate(value=bound.value, learned_from=bound.learned_from) for bound in bounds)
