"""Prediction of the bytes that a batch needs, learned during training."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import torch

from batchcal.calibration.records.memory_model import MemoryModel, ShapePoint
from batchcal.calibration.schema import Calibration
from batchcal.plan.plan import Plan
from batchcal.train.memory.composition import Composition

STABLE_AFTER: Final = 10
"""Number of measured batches of a group after which its predictions count as its own."""
REMEMBERED: Final = 50
"""Number of errors kept for each group."""
LATEST: Final = 3
WITHIN: Final = 0.03
"""Maximum error of each of the latest `LATEST` batches of a settled group."""
_NOISE: Final = 0.03
"""Noise of a measured peak, as a fraction: the run-to-run spread of the steadier allocators is 1-3 %, of glibc 5-8 %."""
_DRIFT: Final = 0.01
"""Drift of the base between two measured batches, as a fraction. Memory kept for each shape of a batch and partly free blocks add
up to 10 % of it in a minute of batches of changing lengths (measured: a transformer over bucketed texts, tcmalloc)."""
_PRIOR: Final = (0.10, 0.25, 0.25)
"""Uncertainty of the calibration, as fractions: base, bytes of a padded sample, bytes of a sample regardless of its length."""

_Three = tuple[float, float, float]


@dataclass
class _Fit:
    """Kalman filter for three corrections, each 0 before the first measurement. The first one, of the base, drifts."""

    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    covariance: torch.Tensor = field(
        default_factory=lambda: torch.tensor([spread**2 for spread in _PRIOR], dtype=torch.float64).diag()
    )
    measured: int = 0
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    base_of_all: float = 0.0
    """Correction of the base for all groups at the latest measurement of this group."""
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
    """Predictor of the peak bytes of the process for a batch, from the composition of the batch.

    It starts from the memory model of the calibration, which describes batches of the largest samples: a batch with a third of
    their padded bytes counts as a third as many samples. Measurements correct three values for each group: the base, the bytes
    proportional to padding, and the bytes proportional to the number of samples. The base belongs to the process: it moves for
    all groups at once. A group without measurements uses the corrections of all others.

    Args:
        model: memory model of the calibration for the device and the allocator in use.
        sample_bytes: padded bytes of one of the largest samples in a batch.
    """

    def __init__(self, model: MemoryModel, sample_bytes: float) -> None:
        if not sample_bytes > 0:
            raise ValueError(f"the size of a sample must be positive, not {sample_bytes} bytes")
        self._model = model
        self._sample_bytes = sample_bytes
        self._all = _Fit()
        self._groups: dict[str, _Fit] = {}
        self._cached: dict[str, _Three] = {}
        self._latest: tuple[Composition, float] | None = None
        """Latest prediction: batches of one kind follow one another."""

    def predict(self, batch: Composition) -> float:
        """Return the peak bytes of the process in a training step on `batch`."""
        if self._latest is not None and self._latest[0] == batch:
            return self._latest[1]
        if batch.group not in self._cached:
            self._cached[batch.group] = self._corrections(batch.group)
        features, prior = self._features(batch)
        predicted = max(
            0.0,
            prior + sum(feature * correction for feature, correction in zip(features, self._cached[batch.group], strict=True)),
        )
        self._latest = (batch, predicted)
        return predicted

    def observe(self, batch: Composition, peak_bytes: int, *, at_most: bool = False) -> None:
        """Learn from a step on `batch` with a peak of `peak_bytes`.

        Args:
            at_most: the process held that much before the step. The batch needed no more, perhaps less. Such a peak is used only
                if more was predicted.
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
        self._cached.clear()
        self._latest = None

    def stable(self, group: str = "") -> bool:
        """Return True if enough batches of the group were measured."""
        fit = self._groups.get(group)
        return fit is not None and fit.measured >= STABLE_AFTER

    def settled(self, group: str = "") -> bool:
        """Return True if its predictions are accurate, too. Then measuring each of the next batches has no benefit."""
        fit = self._groups.get(group)
        return fit is not None and fit.settled

    def error(self, group: str = "") -> float | None:
        """Median |predicted / measured - 1| of the group's latest batches, each predicted before it ran. None: no batch."""
        fit = self._groups.get(group)
        return statistics.median(map(abs, fit.errors)) if fit is not None and fit.errors else None

    def groups(self) -> tuple[str, ...]:
        """Return the measured groups."""
        return tuple(self._groups)

    def _corrections(self, group: str) -> _Three:
        fit = self._groups.get(group)
        if fit is None:
            return self._all.corrections()
        base, padded, each = fit.corrections()
        return base + self._all.base - fit.base_of_all, padded, each

    def _features(self, batch: Composition) -> tuple[_Three, float]:
        """Return the quantities that the corrections multiply, in bytes, and the prediction without corrections."""
        as_many = batch.padded_bytes / self._sample_bytes
        prior = self._model.predict(as_many)
        need_bytes = max(0.0, prior - self._model.base_bytes)
        each = need_bytes / as_many if as_many > 0 else 0.0
        features = (max(self._model.base_bytes, 1.0), need_bytes, each * (batch.samples - as_many))
        if not all(map(math.isfinite, features)):
            raise ValueError(f"{batch} is too large for a prediction of its memory")
        return features, prior


def predictor_of(calibration: Calibration, plan: Plan) -> MemoryPredictor | None:
    """Return a predictor for the plan's device and allocator. None: the calibration lacks them, or the size of a sample."""
    finding = calibration.finding(device=plan.device, allocator=plan.allocator)
    if finding is None or calibration.facts is None or calibration.facts.batch_bytes_per_sample <= 0:
        return None
    return MemoryPredictor(finding.train_memory, calibration.facts.batch_bytes_per_sample)


def straight_line(base_bytes: int, batch: int, peak_bytes: int, sample_bytes: float) -> MemoryPredictor:
    """Return a predictor without a calibration: `base_bytes` for no sample, `peak_bytes` for `batch` of `sample_bytes` each."""
    top = float(max(peak_bytes - base_bytes, batch))
    shape = (ShapePoint(batch=0, bytes=0.0), ShapePoint(batch=batch, bytes=top))
    return MemoryPredictor(MemoryModel(base_bytes=base_bytes, ratio=1.0, shape=shape, source="plan"), max(sample_bytes, 1.0))
