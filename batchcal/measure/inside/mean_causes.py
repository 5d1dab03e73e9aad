"""Reasons why the parts of a batch do not add up to the complete batch, derived from the gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from batchcal.workload.task import Task

Gradients = Sequence[Tensor | None]


@dataclass(frozen=True)
class Part:
    """One evaluation of the loss."""

    loss: float
    weight: float
    """Number of samples, or the count of the task's `weight_of`."""
    samples: int
    rows: int | None
    """Rows of the collated batch. None: unknown."""
    gradients: Gradients
    """Gradients of the mean loss, by parameter."""

    @property
    def norm(self) -> float:
        """Euclidean norm of the gradient. NaN if a value is NaN."""
        return math.sqrt(_dot(self.gradients, self.gradients))

    def distance(self, other: Part) -> float:
        """Euclidean norm of the difference of two gradients."""
        return _Products.of([self, other]).norm(1.0, -1.0)


@dataclass(frozen=True)
class PartGradients:
    """A complete batch and two parts of it."""

    complete: Part
    parts: tuple[Part, Part]
    mismatch: float
    """Norm of the difference between the complete gradient and the weighted mean of the parts, relative to the larger one."""
    is_sum: float
    """The same for the plain sum of the parts."""
    share: float
    """Share of the first part in the complete batch, by least squares."""
    residual: float
    """Norm of the rest that no share explains, relative as above."""

    @classmethod
    def of(cls, complete: Part, parts: tuple[Part, Part]) -> PartGradients:
        first, second = parts
        total = first.weight + second.weight
        shares = (first.weight / total, second.weight / total) if total else (0.0, 0.0)
        products = _Products.of([complete, first, second])
        # A part without weight adds nothing, whatever its gradient is.
        products = products.without([place for place, share in enumerate(shares, 1) if not share])
        norms = [products.norm(*unit) for unit in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))]
        scale = max(norms[0], shares[0] * norms[1] + shares[1] * norms[2])
        if not all(map(math.isfinite, norms)):
            return cls(complete, parts, mismatch=1.0, is_sum=1.0, share=math.nan, residual=1.0)
        beyond, length = products.dot((1.0, 0.0, -1.0), (0.0, 1.0, -1.0)), products.norm(0.0, 1.0, -1.0) ** 2
        share = beyond / length if length else 0.0
        return cls(
            complete,
            parts,
            mismatch=products.norm(1.0, -shares[0], -shares[1]) / scale,
            is_sum=products.norm(1.0, -1.0, -1.0) / scale,
            share=share,
            residual=products.norm(1.0, -share, share - 1.0) / scale,
        )


class MeanCause(NamedTuple):
    text: str
    fix: str


COUPLED: Final = MeanCause(
    "the loss of a sample depends on the other samples of its batch (in-batch negatives, mining, statistics over the batch, "
    "padding that is not masked)",
    "a loss that is a mean over the samples",
)
KEEPS_STATE: Final = MeanCause(
    "the forward pass changes state that the next loss depends on (a queue, running averages, a hidden state)",
    "change that state in the optimizer's step, once for each effective batch",
)


def steps_within(optimizer: str) -> MeanCause:
    """Return the cause for parameters that another optimizer than the task's changes within a pass."""
    return MeanCause(
        f"{optimizer} makes a step within the loss or the backward pass, so it makes one step per micro-batch",
        "one Task(optimizer=...) for all parameters: a class derived from torch.optim.Optimizer whose step() steps all of them",
    )


def likely_cause(wrong: Sequence[PartGradients], task: Task, *, tolerance: float) -> MeanCause:
    """Return the likeliest cause of `wrong`, divisions whose mismatch is above `tolerance`."""
    finite = [
        division for division in wrong if all(math.isfinite(value) for part in division.parts for value in (part.loss, part.norm))
    ]
    if len(finite) < len(wrong):
        # A correlation is NaN for one sample, and wrong for more: the error of the finite divisions is the cause.
        if finite and likely_cause(finite, task, tolerance=tolerance) is COUPLED:
            return COUPLED
        return MeanCause(
            "a part of the batch has a loss that is NaN or infinite: probably a mean over none of its elements",
            "weight_of=lambda batch: float(the number of elements that the mean is over); a batch of weight 0 adds nothing",
        )
    explained = all(division.residual <= tolerance and -tolerance <= division.share <= 1 + tolerance for division in wrong)
    if explained and task.weight_of is None and any(part.norm == 0 for division in wrong for part in division.parts):
        return MeanCause(
            "a part of the batch has no gradient (nothing in it is labelled): the loss is not a mean over samples",
            "weight_of=lambda batch: float(the number of elements that the mean is over); a batch of weight 0 adds nothing",
        )
    if all(division.is_sum <= tolerance for division in wrong):
        return MeanCause("the loss is a sum over the samples, not their mean", "loss.mean(), or the sum divided by the samples")
    if explained:
        return _other_weights(wrong[0], task)
    return COUPLED


def _other_weights(division: PartGradients, task: Task) -> MeanCause:
    """Return the cause if the complete batch is a mean of the parts, with other weights than theirs."""
    first, second = division.parts
    first_share = first.weight / (first.weight + second.weight)
    counted = f"{first.samples} of {first.samples + second.samples} samples make up {division.share:.0%} of the gradient"
    if any(part.rows is not None and part.rows < part.samples for part in division.parts):
        return MeanCause(
            f"collate_fn returns fewer rows than samples, so that {counted}", "weight_of=lambda batch: float(len(batch[0]))"
        )
    if task.weight_of is not None:
        return MeanCause(
            f"weight_of gives a weight of {first_share:.0%} to a part that makes up {division.share:.0%} of the gradient",
            "let weight_of return the number of elements that the loss is a mean over",
        )
    return MeanCause(
        f"the loss is a mean over something other than samples (tokens, a mask, class weights): {counted}",
        "weight_of=lambda batch: float(batch['mask'].sum()), or the number of other elements that the mean is over",
    )


@dataclass(frozen=True)
class _Products:
    """Inner products of some gradients. Linear combinations need nothing else, and no gradient is copied."""

    values: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> _Products:
        return cls(tuple(tuple(_dot(left.gradients, right.gradients) for right in parts) for left in parts))

    def dot(self, left: Sequence[float], right: Sequence[float]) -> float:
        """Return the inner product of two combinations."""
        return sum(a * b * self.values[i][j] for i, a in enumerate(left) for j, b in enumerate(right) if a and b)

    def norm(self, *factors: float) -> float:
        """Euclidean norm of a combination. Rounding may make its square a little negative."""
        square = self.dot(factors, factors)
        return math.sqrt(max(0.0, square)) if math.isfinite(square) else math.nan

    def without(self, places: Sequence[int]) -> _Products:
        """Return the products with some gradients taken as zero."""
        size = range(len(self.values))
        return _Products(tuple(tuple(0.0 if {i, j} & set(places) else self.values[i][j] for j in size) for i in size))


def combined(parts: Sequence[tuple[float, Part]]) -> Gradients:
    """Return the sum of gradients with factors."""
    total: list[Tensor | None] = []
    for gradients in zip(*(part.gradients for _, part in parts), strict=True):
        present = [
            factor * _plain(gradient)
            for (factor, _), gradient in zip(parts, gradients, strict=True)
            if gradient is not None and factor
        ]
        total.append(sum(present[1:], present[0]) if present else None)
    return total


def squared_norm(gradients: Gradients) -> float:
    """Squared Euclidean norm."""
    return _dot(gradients, gradients)


def _dot(left: Gradients, right: Gradients) -> float:
    """Return the inner product over all parameters, in float64. A missing gradient is zero."""
    total = 0.0
    for left_value, right_value in zip(left, right, strict=True):
        if left_value is not None and right_value is not None:
            total += float((_plain(left_value) * _plain(right_value)).sum())
    return total


def _plain(value: Tensor) -> Tensor:
    """Dense, real, float64."""
    dense = value.to_dense() if value.is_sparse else value
    return (torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense).double()
