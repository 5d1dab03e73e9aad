"""The steps of a run as columns: reading, cutting and summing a hundred thousand steps takes a fraction of a second."""

from __future__ import annotations

import itertools
import math
import operator
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from batchcal.train.report.events import NOT_FINITE

NAN: Final = float("nan")
_PLACES: Final = frozenset({"at", "epoch", "step", "global_step", "samples_seen"})


@dataclass(frozen=True)
class Bucket:
    """Consecutive steps as one point of a curve. The range between the extremes is drawn; no value is outside of it."""

    step: float
    """Middle of the steps."""
    low: float
    mean: float
    high: float


class Steps:
    """A column of numbers for each field of the `step` events, all of the same length. NaN: the step lacks the field."""

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {}
        self._length = 0
        self._odd: list[tuple[int, str]] = []
        self._places: Sequence[float] | None = None

    def __len__(self) -> int:
        return self._length

    def column(self, name: str) -> Sequence[float]:
        """Return the column of a field. Empty: no step has the field."""
        return self._columns.get(name, ())

    @property
    def places(self) -> Sequence[float]:
        """`global_step` of each step. If it is missing, decreases or is infinite: counted from 1."""
        if self._places is None:
            logged = self.column("global_step")
            # Comparisons with NaN are False.
            rising = all(map(operator.le, logged, itertools.islice(logged, 1, None)))
            usable = bool(logged) and rising and logged[0] >= 0 and logged[-1] < math.inf
            self._places = logged if usable else range(1, self._length + 1)
        return self._places

    def named(self, prefix: str) -> tuple[str, ...]:
        """Return the rest of the names of columns that begin with `prefix`, in alphabetical order: for `loss_` the tasks."""
        return tuple(sorted(name[len(prefix) :] for name in self._columns if name.startswith(prefix)))

    def curves(self) -> tuple[str, ...]:
        """Return the names of columns that are quantities, not positions."""
        return tuple(sorted(self._columns.keys() - _PLACES))

    def extend(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append steps."""
        odd = [(self._length + place, str(row[NOT_FINITE])) for place, row in enumerate(rows) if NOT_FINITE in row]
        if odd:
            self._odd += odd
            rows = [restored(row) for row in rows]
        for name in set().union(*rows) - {"event", NOT_FINITE}:
            column = self._columns.get(name)
            if column is None:
                # Strings have no column.
                if not any(isinstance(row.get(name), float | int) for row in rows):
                    continue
                column = self._columns[name] = array("d", [NAN]) * self._length
            column.extend(_numbers(name, rows))
        self._length += len(rows)
        self._places = None
        for column in self._columns.values():
            if len(column) < self._length:
                column.extend([NAN] * (self._length - len(column)))

    def cut(self, length: int) -> None:
        """Keep the first `length` steps."""
        for column in self._columns.values():
            del column[length:]
        self._length = min(length, self._length)
        self._places = None
        self._odd = [(place, told) for place, told in self._odd if place < length]

    def not_finite(self, name: str) -> tuple[int, ...]:
        """Return the `global_step` of the steps at which the field was NaN or infinite, not just missing."""
        return tuple(int(self.places[place]) for place, told in self._odd if f" {name}=" in f" {told}")

    def buckets(self, name: str, most: int) -> tuple[Bucket, ...]:
        """Return the curve of a column in at most `most` points, without steps that lack the field or have no finite number."""
        values, places = self.column(name), self.places
        if not values:
            return ()
        width = max(math.ceil(self._length / most), 1)
        found = []
        for start in range(0, self._length, width):
            some = values[start : start + width]
            mean = sum(some) / len(some)
            if not math.isfinite(mean):
                some = [value for value in some if math.isfinite(value)]
                mean = sum(value / len(some) for value in some)
            end = min(start + width, self._length) - 1
            if some:
                found.append(Bucket((places[start] + places[end]) / 2, min(some), mean, max(some)))
        return tuple(found)


def _numbers(name: str, rows: Sequence[Mapping[str, object]]) -> array[float]:
    try:
        # Takes a fifth of the time, if all steps have the field.
        return array("d", map(operator.itemgetter(name), rows))
    except (KeyError, TypeError, OverflowError):
        return array("d", [_number(row.get(name)) for row in rows])


def _number(value: object) -> float:
    if isinstance(value, float):
        return value
    try:
        return float(value) if isinstance(value, int) else NAN
    except OverflowError:  # integers in JSON are unbounded
        return NAN


def restored(fields: Mapping[str, object]) -> Mapping[str, object]:
    """Return `fields` with the NaN and infinities that JSON cannot represent."""
    if NOT_FINITE not in fields:
        return fields
    whole = dict(fields)
    for told in str(fields[NOT_FINITE]).split():
        name, _, text = told.partition("=")
        if text in {"nan", "inf", "-inf"}:
            whole[name] = float(text)
    return whole
