"""How many bytes a batch will need, learned while training."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import torch

from batchcal.calibration.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.schema import Calibration
from batchcal.plan.plan import Plan
from batchcal.train.memory.composition import Composition

STABLE_AFTER: Final = 10
"""Measured batches of a group until its predictions count as its own."""
REMEMBERED: Final = 50
"""Errors that are remembered for each group."""
LATEST: Final = 3
WITHIN: Final = 0.03
"""Error of each of so many latest batches up to which a group is settled."""
_NOISE: Final = 0.03
"""Of a measured peak: the run-to-run spread of the steadier allocators is 1-3 %, of glibc 5-8 %."""
_DRIFT: Final = 0.01
"""How far the base moves between two measured batches: what is kept for each shape of a batch, and blocks that are free in part,
add up to 10 % of it in a minute of batches of changing lengths (measured: a transformer over bucketed texts, tcmalloc)."""
_PRIOR: Final = (0.10, 0.25, 0.25)
"""How far off the calibration may be: base, bytes of a padded sample, bytes of a sample whatever its length; as fractions."""

_Three = tuple[float, float, float]


@dataclass
class _Fit:
    """A Kalman filter for three corrections, each 0 as long as nothing was measured. The first of them, of the base, moves."""

    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    covariance: torch.Tensor = field(
        default_factory=lambda: torch.tensor([spread**2 for spread in _PRIOR], dtype=torch.float64).diag()
    )
    measured: int = 0
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    base_of_all: float = 0.0
    """The correction of the base that held for all groups when this one was measured last."""
    settled: bool = False

    @property
    def base(self) -> float:
        return float(self.mean[0])

    def corrections(self) -> _Three:
        base, padded, each = self.mean.tolist()
        return base, padded, each

    def learn(self, features: _Three, target: float, noise: float) -> None:
        row = torch.tensor(features, dtype=torch.float64)
        self.covariance[0, 0] += _DRIFT**2
        reach = self.covariance @ row
        gain = reach / (row @ reach + noise**2)
        self.mean += gain * (target - row @ self.mean)
        self.covariance -= torch.outer(gain, reach)
        self.measured += 1


class MemoryPredictor:
    """Bytes that the process holds at the peak of a batch, from what the batch is made of.

    It starts from the calibration's memory model, which knows batches of the largest samples: a batch with a third of their
    padded bytes is taken for a third as many. What is measured corrects the base, the bytes that go with padding and those that
    go with the number of samples, for each group by itself; the base is the process's, and moves for all groups when it moves.
    A group that was never measured is predicted as all others are.

    Args:
        model: of the calibration, for the device and the allocator in force.
        sample_bytes: padded bytes of one of the largest samples in a batch.
    """

    def __init__(self, model: MemoryModel, sample_bytes: float) -> None:
        if not sample_bytes > 0:
            raise ValueError(f"a sample of {sample_bytes} bytes has no size to compare with")
        self._model = model
        self._sample_bytes = sample_bytes
        self._all = _Fit()
        self._groups: dict[str, _Fit] = {}
        self._known: dict[str, _Three] = {}
        self._latest: tuple[Composition, float] | None = None
        """Batches of one kind follow one another."""

    def predict(self, batch: Composition) -> float:
        """Peak bytes of the process in a training step on `batch`."""
        if self._latest is not None and self._latest[0] == batch:
            return self._latest[1]
        if batch.group not in self._known:
            self._known[batch.group] = self._corrections(batch.group)
        features, prior = self._features(batch)
        predicted = max(0.0, prior + sum(one * by for one, by in zip(features, self._known[batch.group], strict=True)))
        self._latest = (batch, predicted)
        return predicted

    def observe(self, batch: Composition, peak_bytes: int, *, at_most: bool = False) -> None:
        """A step on `batch` held `peak_bytes` at its peak.

        Args:
            at_most: the process held that much before already: the batch needed no more, perhaps less. Learned from only where
                more was predicted.
        """
        predicted = self.predict(batch)
        if at_most and predicted <= peak_bytes:
            return
        features, prior = self._features(batch)
        group = self._groups.setdefault(batch.group, _Fit(self._all.mean.clone(), base_of_all=self._all.base))
        if not at_most:
            group.errors.append(predicted / peak_bytes - 1)
        group.mean[0] += self._all.base - group.base_of_all
        for fit in (self._all, group):
            fit.learn(features, peak_bytes - prior, _NOISE * peak_bytes)
        group.base_of_all = self._all.base
        latest = [abs(error) for error in group.errors][-LATEST:]
        group.settled = group.measured >= STABLE_AFTER and bool(latest) and max(latest) <= WITHIN
        self._known.clear()
        self._latest = None

    def stable(self, group: str = "") -> bool:
        """Whether enough batches of the group were measured."""
        fit = self._groups.get(group)
        return fit is not None and fit.measured >= STABLE_AFTER

    def settled(self, group: str = "") -> bool:
        """Whether they are predicted well, too: nothing is gained by measuring each of the next ones."""
        fit = self._groups.get(group)
        return fit is not None and fit.settled

    def error(self, group: str = "") -> float | None:
        """Median |predicted / measured - 1| of the group's latest batches, each as predicted before it ran. None: none was."""
        fit = self._groups.get(group)
        return statistics.median(map(abs, fit.errors)) if fit is not None and fit.errors else None

    def groups(self) -> tuple[str, ...]:
        """Those that were measured."""
        return tuple(self._groups)

    def _corrections(self, group: str) -> _Three:
        fit = self._groups.get(group)
        if fit is None:
            return self._all.corrections()
        base, padded, each = fit.corrections()
        return base + self._all.base - fit.base_of_all, padded, each

    def _features(self, batch: Composition) -> tuple[_Three, float]:
        """What the corrections are multiples of, in bytes, and what is predicted without any."""
        as_many = batch.padded_bytes / self._sample_bytes
        prior = self._model.predict(as_many)
        taken = max(0.0, prior - self._model.base_bytes)
        each = taken / as_many if as_many > 0 else 0.0
        features = (max(self._model.base_bytes, 1.0), taken, each * (batch.samples - as_many))
        if not all(map(math.isfinite, features)):
            raise ValueError(f"{batch} is out of all proportion")
        return features, prior


def predictor_of(calibration: Calibration, plan: Plan) -> MemoryPredictor | None:
    """What was measured of the plan's device and allocator. None: the calibration does not say how large a sample is."""
    finding = calibration.finding(device=plan.device, allocator=plan.allocator)
    if finding is None or calibration.facts is None or calibration.facts.batch_bytes_per_sample <= 0:
        return None
    return MemoryPredictor(finding.train_memory, calibration.facts.batch_bytes_per_sample)


def straight_line(base_bytes: int, batch: int, peak_bytes: int, sample_bytes: float) -> MemoryPredictor:
    """Where no calibration is at hand: `base_bytes` without a sample, `peak_bytes` with `batch` of `sample_bytes` each."""
    top = float(max(peak_bytes - base_bytes, batch))
    shape = (ShapePoint(batch=0, bytes=0.0), ShapePoint(batch=batch, bytes=top))
    return MemoryPredictor(MemoryModel(base_bytes=base_bytes, ratio=1.0, shape=shape, source="plan"), max(sample_bytes, 1.0))
