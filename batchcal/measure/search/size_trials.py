"""Sizes to try before a refusal is final, and the rule of the accepted and refused sizes. Pure.

A rule is a multiple, a lower bound and an upper bound, or a single size. Each accepted size removes the multiples that do not
divide it, each refused size between two accepted sizes removes those that divide it. The rule with the fewest parts is used. Of
rules that explain the same sizes, the narrowest is used, since its sizes are sizes of the others, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from batchcal.calibration.records.size_rule import SizeRule

MOST_MULTIPLE: Final = 64
"""Largest multiple to search. A larger one from the user is kept."""
MOST_TRIALS: Final = 8
"""Maximum trials for one refusal. A trial is one child; the longest sequence over all rules of `test_size_trials.py` has 8."""


Kind = tuple[int, bool, bool, bool]
"""Kind of a rule: the multiple (0: no rule explains the sizes), a lower bound exists, an upper bound exists, `one_size`."""


@dataclass(frozen=True)
class Trial:
    """A size to run once in a fresh process."""

    batch: int
    one_size: bool
    """The warm-up uses `batch` too, not the smallest admissible size."""
    why: str


@dataclass
class SizeTrials:
    """The sizes that the task accepted and refused so far.

    Args:
        smallest: a size that ran; the warm-up of every process uses it.
        multiple_of: `--multiple-of`.
    """

    smallest: int
    multiple_of: int = 1
    one_size: bool = False
    """The task accepts a size only if the warm-up used the same size."""
    _accepted: set[int] = field(default_factory=set)
    _refused: set[int] = field(default_factory=set)
    _refused_unmixed: set[int] = field(default_factory=set)
    """Refused although the process ran no other size."""
    _mixed: set[int] = field(default_factory=set)
    """Refused because the process had run another size."""
    _ceiling: int | None = None
    _explained_kind: Kind | None = None
    """The kind of rule that explained the last refusal."""

    def __post_init__(self) -> None:
        self._accepted.add(self.smallest)

    def add(self, batch: int, *, accepted: bool, one_size: bool) -> None:
        """Record if the task accepted `batch`, in a process that ran `smallest` before or, with `one_size`, no other size."""
        if accepted and one_size and batch in self._refused and not self.one_size:
            # The same size runs if no other size ran before: mixed refusals are not evidence about sizes.
            self.one_size = True
            self._mixed = set(self._refused)
            self._accepted = {self.smallest, batch}
            self._refused = set(self._refused_unmixed)
            self._explained_kind = None
            return
        if accepted:
            self._accepted.add(batch)
            self._refused.discard(batch)
            return
        self._refused.add(batch)
        if one_size:
            self._refused_unmixed.add(batch)

    @property
    def accepted(self) -> tuple[int, ...]:
        """Sizes that the task accepted, in ascending order."""
        return tuple(sorted(self._accepted))

    @property
    def refused(self) -> tuple[int, ...]:
        """Sizes that the task refused, in ascending order."""
        return tuple(sorted(self._refused))

    @property
    def rule(self) -> SizeRule | None:
        """The rule that the task follows. None: it accepts every size, or the sizes follow no rule of these kinds."""
        multiples = self._multiples()
        if not multiples or not (self._refused or self.one_size):
            return None
        multiple = max(multiples)
        low, high = self._bounds(multiple)
        least, most = min(self._accepted), max(self._accepted)
        if self._is_single and min(self._refused, default=least) < least:
            return SizeRule(multiple_of=least, least=least, most=least, one_size=self.one_size)
        return SizeRule(
            multiple_of=multiple,
            least=least if low else multiple,
            most=most if high else None,
            one_size=self.one_size,
        )

    def next(self, around: int, ceiling: int) -> Trial | None:
        """Return the next trial before the refusal of `around` is final. None: the rule is known, or no trial can show more."""
        self._ceiling = ceiling
        for trial in self._candidates(around, ceiling):
            excluded = self._refused_unmixed if trial.one_size and not self.one_size else self._refused
            if trial.batch not in excluded | self._accepted and 1 < trial.batch <= ceiling:
                return trial
        self._explained_kind = self._kind()
        return None

    def _candidates(self, around: int, ceiling: int) -> Iterator[Trial]:
        one_size = self.one_size
        if around not in self._refused | self._accepted | self._mixed:
            yield Trial(around, one_size, f"to find out if the task accepts {around}")
        kind = self._kind()
        if self._explained_kind is not None and kind == self._explained_kind:
            return  # a further refusal of a kind that is known, such as a tighter upper bound
        if around in self._refused and around % self.multiple_of == 0:
            # One at a time: the result of the first may make the others unnecessary.
            near = (around - 1 if around - 1 not in self._accepted else around + 1, _below(around, 8), _power_below(around))
            if not self._accepted & set(near):
                for size in near:
                    yield Trial(size, one_size, f"near {around}, which the task refused")
        if len(self._accepted) == 1 and not one_size:
            double = 2 * self.smallest
            if double in self._refused:
                yield Trial(double, True, f"to find out if the task accepts {double} in a process that ran no other size")
            else:
                yield Trial(
                    double, False, f"to find out if the task accepts two sizes in one process ({self.smallest}, {double})"
                )
        multiples = sorted(self._multiples())
        if len(multiples) > 1 and not self._is_single:
            size = self._between(multiples[-2], multiples[-1])
            why = f"to find out if the task accepts multiples of {multiples[-2]}, or only of {multiples[-1]}"
            if size <= ceiling:
                yield Trial(size, one_size, why)
        rule = self.rule
        if rule is not None and rule.fixed is None and rule.least > rule.multiple_of:
            low = self._bounds(rule.multiple_of)[0] // rule.multiple_of
            least = rule.least // rule.multiple_of
            if least - low > 1:
                # Start with the next one below: the smallest size that ran is mostly the smallest that can.
                size = least - 1 if rule.least == self.smallest else (least + low) // 2
                yield Trial(
                    size * rule.multiple_of, one_size, f"to find the smallest batch that the task accepts: {rule.least} ran"
                )

    @property
    def _is_single(self) -> bool:
        """True if one size ran and its double did not, not even in a process of its own, or cannot be tried."""
        double = 2 * self.smallest
        no_room = self.multiple_of == 1 and self._ceiling is not None and double > self._ceiling
        return len(self._accepted) == 1 and (double in self._refused_unmixed or no_room)

    def _between(self, finer: int, coarser: int) -> int:
        """Smallest untried size above the smallest that ran that is a multiple of `finer` and not of `coarser`."""
        least = min(self._accepted)
        tried = self._accepted | self._refused
        return next(size for size in count(least - least % finer + finer, finer) if size % coarser and size not in tried)

    def _multiples(self) -> tuple[int, ...]:
        """Multiples that explain all sizes with the fewest bounds."""
        costs: dict[int, int] = {}
        for multiple in range(self.multiple_of, max(MOST_MULTIPLE, self.multiple_of) + 1, self.multiple_of):
            if all(size % multiple == 0 for size in self._accepted) and self._explains(multiple):
                low, high = self._bounds(multiple)
                costs[multiple] = (multiple > self.multiple_of) + bool(low) + (high is not None)
        fewest = min(costs.values(), default=0)
        return tuple(multiple for multiple, cost in costs.items() if cost == fewest)

    def _explains(self, multiple: int) -> bool:
        least, most = min(self._accepted), max(self._accepted)
        return not any(least < size < most and size % multiple == 0 for size in self._refused)

    def _bounds(self, multiple: int) -> tuple[int, int | None]:
        """Nearest refused multiples below and above all sizes that ran; 0 and None if there are none."""
        least, most = min(self._accepted), max(self._accepted)
        multiples = [size for size in self._refused if size % multiple == 0]
        low = max((size for size in multiples if size < least), default=0)
        return low, min((size for size in multiples if size > most), default=None)

    def _kind(self) -> Kind | None:
        """Kind of the rule. None: several rules explain the sizes equally well."""
        multiples = self._multiples()
        if not multiples:
            return 0, False, False, self.one_size
        if len(multiples) > 1 or not self._refused:
            return None
        low, high = self._bounds(multiples[0])
        return multiples[0], bool(low), high is not None, self.one_size


def _below(size: int, multiple: int) -> int:
    """Largest multiple of `multiple` below `size`, or the next one above it if there is none."""
    below = (size - 1) // multiple * multiple
    return below or (size // multiple + 1) * multiple


def _power_below(size: int) -> int:
    """Largest power of two below `size`."""
    return 1 << max((size - 1).bit_length() - 1, 1)
