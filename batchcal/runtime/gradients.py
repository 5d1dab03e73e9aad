"""The gradients of a group, kept separate from those of the current pass."""

from __future__ import annotations

import torch
from torch import Tensor

from batchcal.workload.model.parameters import trained_parameters
from batchcal.workload.task import Task


class GroupGradients:
    """The sum over the successful passes of a group.

    A backward pass that fails in the middle has added to some gradients and not to others. Therefore each pass except the first
    begins without gradients, and the earlier ones are stored separately: a failed pass is undone by dropping its own gradients.
    The additions are those that autograd would do. A second copy of the gradients exists while a group has more than one
    micro-batch.
    """

    def __init__(self, task: Task) -> None:
        self._parameters = [parameter for parameter in trained_parameters(task) if parameter.requires_grad]
        self._sums: list[Tensor | None] | None = None

    def begin(self) -> None:
        """Begin a further pass. The present gradients are from a successful pass."""
        if self._sums is None:
            self._sums = [None] * len(self._parameters)
        # One by one, each added and freed before the next: after a failure in the middle, the next call continues from there.
        for index, parameter in enumerate(self._parameters):
            gradient, total = parameter.grad, self._sums[index]
            if gradient is None:
                continue
            if total is None:
                self._sums[index] = gradient
            elif total.layout is torch.strided:
                total.add_(gradient)
            else:
                self._sums[index] = total + gradient  # sparse gradients of an embedding
            parameter.grad = None

    def drop(self) -> None:
        """Drop the gradients of a failed pass."""
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self) -> None:
        """End the group after its last successful pass. Every parameter gets the sum over the group."""
        if self._sums is None:
            return
        self.begin()
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.grad = total
        self._sums = None

    def scale(self, factor: float) -> None:
        """Multiply the sum over the successful passes."""
        for gradient in (*(parameter.grad for parameter in self._parameters), *(self._sums or ())):
            if gradient is not None:
                gradient.mul_(factor)

    def any(self) -> bool:
        """True if a parameter has a gradient. Call it after `finish`."""
        return any(parameter.grad is not None for parameter in self._parameters)
