"""Models whose task losses are weighed: one whose gradients are told, and one with two heads that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from batchcal.extras.multitask.gradnorm import GradNormBalancer, Rule

RULES: tuple[Rule, ...] = get_args(Rule)
Losses = Mapping[str, Tensor]


class Slopes(nn.Module):
    """Losses that are straight lines in one shared matrix: the gradient of each has the length that is asked for, always."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.ones(1, 2))

    def losses(self, lengths: Mapping[str, float], values: Mapping[str, float]) -> dict[str, Tensor]:
        """Each with its gradient's length and its own value."""
        sums = {name: self.shared[0, 0] * length for name, length in lengths.items()}
        return {name: line - line.detach() + values[name] for name, line in sums.items()}


def stepped(balancer: GradNormBalancer, *micro_batches: Losses, weights: Sequence[float] = ()) -> None:
    """One optimizer step, as far as the balancer sees it."""
    for losses, weight in zip(micro_batches, weights or [1.0] * len(micro_batches), strict=True):
        balancer.observe(losses, weight=weight)
    balancer.after_step()


def on_slopes(model: Slopes, *, rule: Rule, rate: float | None = None, interval: int = 1, alpha: float = 1.5) -> GradNormBalancer:
    return GradNormBalancer(model, shared=[model.shared], rule=rule, learning_rate=rate, interval=interval, alpha=alpha)


class TwoHeads(nn.Module):
    """Two regressions on one trunk; what the second has to learn, and so its gradient, is ten times as large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
        self.heads = nn.ModuleDict({"quiet": nn.Linear(16, 4), "loud": nn.Linear(16, 4)})

    def losses(self, inputs: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the targets that are given."""
        features = self.trunk(inputs)
        return {name: (self.heads[name](features) - target).square().mean() for name, target in targets.items()}


def two_tasks(samples: int, *, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)
    inputs = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
    return inputs, {"quiet": torch.tanh(inputs @ first), "loud": 10 * torch.tanh(inputs @ second)}


def trained(balancer: GradNormBalancer, model: TwoHeads, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in steps:
        losses = model.losses(*two_tasks(16, seed=step))
        balancer.observe(losses)
        balancer.loss(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        balancer.after_step()
