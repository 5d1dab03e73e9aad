"""Schedule-free SGD, as the package `schedulefree` computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor

BETA = 0.9


class ScheduleFree(torch.optim.SGD):
    """The gradients are computed at y. The average x is evaluated; the modes convert one into the other in place."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group.update(train_mode=False, steps=0)

    @torch.no_grad()
    def train(self) -> None:
        self._convert(train_mode=True, weight=1 - BETA)

    @torch.no_grad()
    def eval(self) -> None:
        self._convert(train_mode=False, weight=1 - 1 / BETA)

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            assert group["train_mode"], "a step in evaluation mode"
            group["steps"] += 1
            share = 1 / group["steps"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "z" not in state:
                    state["z"] = parameter.clone()
                parameter.lerp_(state["z"], share)
                parameter.add_(parameter.grad, alpha=group["lr"] * (BETA * (1 - share) - 1))
                state["z"].sub_(parameter.grad, alpha=group["lr"])
        return None

    def _convert(self, *, train_mode: bool, weight: float) -> None:
        for group in self.param_groups:
            if group["train_mode"] != train_mode:
                for parameter in group["params"]:
                    if "z" in self.state[parameter]:
                        parameter.lerp_(self.state[parameter]["z"], weight)
                group["train_mode"] = train_mode
