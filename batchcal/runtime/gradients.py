"""The gradients of a group, kept apart from those of the pass that is going on."""

from __future__ import annotations

import torch
from torch import Tensor

from batchcal.workload.parameters import trained_parameters
from batchcal.workload.task import Task


class GroupGradients:
    """The sum over the passes of a group that went well.

    A backward pass that fails in its middle has added to some gradients and not to others. So each pass but the first begins
    without any, and what was there is set aside: a pass that failed is undone by letting its own gradients go. The additions are
    those that autograd would have done; a second copy of the gradients is held while a group has more than one micro-batch.
    """

    def __init__(self, task: Task) -> None:
        self._parameters = [parameter for parameter in trained_parameters(task) if parameter.requires_grad]
        self._sums: list[Tensor | None] | None = None

    def begin(self) -> None:
        """A further pass begins: the gradients that are there went well."""
        if self._sums is None:
            self._sums = [None] * len(self._parameters)
        # One by one, each added and let go before the next: where this fails in the middle, it goes on from there.
        for place, parameter in enumerate(self._parameters):
            gradient, total = parameter.grad, self._sums[place]
            if gradient is None:
                continue
            if total is None:
                self._sums[place] = gradient
            elif total.layout is torch.strided:
                total.add_(gradient)
            else:
                self._sums[place] = total + gradient  # the sparse ones of an embedding
            parameter.grad = None

    def drop(self) -> None:
        """The pass failed: its gradients go."""
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self) -> None:
        """The last pass went well: every parameter has the sum over the group."""
        if self._sums is None:
            return
        self.begin()
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.grad = total
        self._sums = None

    def scale(self, factor: float) -> None:
        """Multiplies what the passes that went well have added."""
        for gradient in (*(parameter.grad for parameter in self._parameters), *(self._sums or ())):
            if gradient is not None:
                gradient.mul_(factor)

    def any(self) -> bool:
        """Whether a parameter has a gradient. To be called after `finish`."""
        return any(parameter.grad is not None for parameter in self._parameters)
