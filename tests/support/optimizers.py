"""Optimizers that people write themselves: made of others, or with a step that needs the loss again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import nn


class Sharpness(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is published: the closure has a default, and None is refused."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base = torch.optim.SGD(self.param_groups, 0.1, momentum=0.9)

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is not None, "Sharpness Aware Minimization requires closure, but it was not provided"
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        steps = [0.05 * parameter.grad for parameter in parameters]
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.add_(step)
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.sub_(step)
        self.base.step()
        return loss


class Both(torch.optim.Optimizer):
    """Several optimizers as one, whose groups have no rate of their own."""

    def __init__(self, *each: torch.optim.Optimizer) -> None:
        self.each = each
        super().__init__([parameter for one in each for group in one.param_groups for parameter in group["params"]], {})

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for one in self.each:
            one.step()
        return None


class WithoutRate(torch.optim.Optimizer):
    """Follows the sign of the gradient in fixed steps."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(0.001 * parameter.grad.sign())
        return None
