"""A batch and its parts under a loss that draws its own random numbers: noise, mixup, masks made by the collate function.

One difference between the gradient of a batch and that of its parts is mostly noise. The mean of many is not: if the loss is a
mean over its weight, it tends to zero.
"""

from __future__ import annotations

import math
from typing import Final

from batchcal.measure.inside.mean_causes import Gradients, Part, combined, squared_norm

REPEATS: Final = 16
"""Number of differences, each with other random numbers."""
SURE: Final = 8.0
"""Standard deviations beyond which the mean difference is not considered noise. The bound is that of noise in one direction; its
square has a chi-squared distribution: 12.3 times its mean with 16 differences, a chance of 5 in 10,000."""


class Differences:
    """Differences of the gradient of a complete batch minus the weighted mean of its parts. Only sums are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._difference, self._gradient = _Sum(), _Sum()

    def add(self, complete: Part, parts: tuple[Part, Part]) -> None:
        """Add a difference with independent random numbers. Ignore it if a value is not finite or no part has a weight."""
        total = parts[0].weight + parts[1].weight
        if not total:
            return
        shares = [(-part.weight / total, part) for part in parts]
        difference, gradient = combined([(1.0, complete), *shares]), combined([(1.0, complete)])
        if math.isfinite(squared_norm(difference)):
            self._difference.add(difference)
            self._gradient.add(gradient)
            self.count += 1

    @property
    def mismatch(self) -> float:
        """Norm of the mean difference, relative to that of the mean gradient, without the contribution of noise."""
        length = self._gradient.squared_mean(self.count)
        if length <= 0:
            return 0.0
        return math.sqrt(max(0.0, self._difference.squared_mean(self.count)) / length)

    @property
    def systematic(self) -> bool:
        """True if the mean difference is larger than noise explains."""
        if self.count < 2:
            return False
        deviation = math.sqrt(2 / (self.count * (self.count - 1))) * self._difference.squares / self.count
        return self._difference.squared_mean(self.count) > SURE * deviation and self.mismatch > 0


class _Sum:
    def __init__(self) -> None:
        self.squares = 0.0
        self._total: Gradients | None = None

    def add(self, gradients: Gradients) -> None:
        self.squares += squared_norm(gradients)
        if self._total is None:
            self._total = gradients
            return
        self._total = [
            gradient if total is None else total if gradient is None else total.add_(gradient)
            for total, gradient in zip(self._total, gradients, strict=True)
        ]

    def squared_mean(self, count: int) -> float:
        """Squared norm of the mean, estimated from products of different terms only: noise adds nothing on average."""
        if self._total is None or count < 2:
            return 0.0
        return (squared_norm(self._total) - self.squares) / (count * (count - 1))
