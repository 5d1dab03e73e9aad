"""Aggregates of steps: sums that cost a microsecond per step."""

from __future__ import annotations

import functools

from batchcal.core.progress import Field, Fields
from batchcal.core.values import Record
from batchcal.train.report.events import GRAD_NORM, LOSS
from batchcal.values.training_events import Recovered


class Totals(Record):
    """Totals of a run so far, in this process."""

    steps: int
    samples: int
    recoveries: int
    lost_s: float
    """Seconds lost by recoveries."""
    changes: int
    """Number of changes of the allowed micro-batch."""
    peak_bytes: int | None
    """Largest measured peak. None: no measurement."""
    predicted_steps: int
    """Number of steps with a prediction and a measurement."""
    prediction_error: float | None
    """Mean of |predicted - measured| / measured over these steps."""
    worst_under: float
    """Largest share of a measured peak that was not predicted. 0: no peak exceeded its prediction."""


class Sums:
    """Sums over the steps of an epoch or of a run."""

    def __init__(self) -> None:
        self._steps = self._samples = self._recoveries = self._changes = self._predicted_steps = 0
        self._lost_s = self._error = self._worst_under = 0.0
        self._means: dict[str, tuple[float, int]] = {}
        """By key: sum of value x samples, and number of samples."""
        self._predicted_bytes = self._peak_bytes = -1
        self._last: Fields = {}

    def step(self, fields: Fields) -> None:
        samples = _integer(fields.get("samples"))
        weight = max(samples, 1)
        self._steps += 1
        self._samples += max(samples, 0)
        self._last = fields
        for key, value in fields.items():
            if _is_averaged(key) and isinstance(value, float):
                total, so_far = self._means.get(key, (0.0, 0))
                self._means[key] = (total + value * weight, so_far + weight)
        predicted, peak = _integer(fields.get("predicted_bytes")), _integer(fields.get("peak_bytes"))
        self._predicted_bytes = max(predicted, self._predicted_bytes)
        self._peak_bytes = max(peak, self._peak_bytes)
        if predicted >= 0 and peak > 0:
            off = predicted / peak - 1
            self._predicted_steps += 1
            self._error += abs(off)
            self._worst_under = max(self._worst_under, -off)

    def recovered(self, event: Recovered) -> None:
        self._recoveries += 1
        self._lost_s += event.lost_s or 0.0

    def changed(self) -> None:
        """Count a change of the allowed micro-batch."""
        self._changes += 1

    def add(self, other: Sums) -> None:
        self._steps += other._steps
        self._samples += other._samples
        self._recoveries += other._recoveries
        self._changes += other._changes
        self._predicted_steps += other._predicted_steps
        self._lost_s += other._lost_s
        self._error += other._error
        self._worst_under = max(self._worst_under, other._worst_under)
        self._predicted_bytes = max(self._predicted_bytes, other._predicted_bytes)
        self._peak_bytes = max(self._peak_bytes, other._peak_bytes)

    def fields(self) -> dict[str, Field]:
        """Return the aggregates of its steps in this process for the event that ends an epoch. Unknown values are left out."""
        values: dict[str, Field] = {key: total / weight for key, (total, weight) in self._means.items()}
        values |= {name: self._last[name] for name in ("lr", "micro_batch") if name in self._last}
        values |= {"recoveries": self._recoveries, "resizes": self._changes, "lost_s": self._lost_s}
        if self._predicted_bytes >= 0:
            values["predicted_bytes"] = self._predicted_bytes
        if self._peak_bytes >= 0:
            values["peak_bytes"] = self._peak_bytes
        if self._predicted_steps:
            values |= {"prediction_error": self._error / self._predicted_steps, "worst_under": self._worst_under}
        return values

    def totals(self) -> Totals:
        return Totals(
            steps=self._steps,
            samples=self._samples,
            recoveries=self._recoveries,
            lost_s=self._lost_s,
            changes=self._changes,
            peak_bytes=self._peak_bytes if self._peak_bytes >= 0 else None,
            predicted_steps=self._predicted_steps,
            prediction_error=self._error / self._predicted_steps if self._predicted_steps else None,
            worst_under=self._worst_under,
        )


@functools.cache
def _is_averaged(key: str) -> bool:
    return key == "grad_norm" or key.startswith((LOSS, GRAD_NORM))


def _integer(value: Field) -> int:
    """Return the integer. -1: unknown."""
    return value if isinstance(value, int) else -1
