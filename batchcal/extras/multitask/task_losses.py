"""Weighted sum of several task losses as the single loss of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from batchcal.core.errors import UsageError, UserCodeError
from batchcal.extras.multitask.gradnorm import GradNormBalancer, TaskGradients
from batchcal.values.settings import LossWeights
from batchcal.workload.task import Task


class TaskLosses:
    """Replacement of a task's `loss`: the same forward pass, with the task losses weighted by `balancer`."""

    def __init__(
        self, losses: Callable[..., Mapping[str, Tensor]], balancer: GradNormBalancer, scale: Callable[[], float]
    ) -> None:
        self.balancer = balancer
        self._scale = scale
        self._losses = losses
        self._weight = 1.0
        self._observation: TaskGradients | None = None

    def weigh(self, weight: float) -> None:
        """Set the weight of the next batch's mean loss in its group."""
        self._weight = weight
        self._observation = None

    def __call__(self, model: nn.Module, batch: object) -> Tensor:
        losses: object = self._losses(model, batch)
        if not isinstance(losses, Mapping) or not all(isinstance(loss, Tensor) for loss in losses.values()):
            raise UserCodeError(
                f"losses returned {type(losses).__name__}",
                known="losses must return a mapping of task names to scalar tensors",
                try_="return {'T1': first, 'T2': second}",
            )
        loss = self.balancer.loss(losses)
        self._observation = self.balancer.observe(losses, weight=self._weight, scale=self._scale())
        return loss

    def take_back(self) -> None:
        """Discard the last batch: its pass failed and will be run again."""
        if self._observation is not None:
            self.balancer.take_back(self._observation)
            self._observation = None


def weighed(task: Task, weights: LossWeights, scaler: GradScaler | None = None) -> tuple[Task, GradNormBalancer | None]:
    """Return `task` with weighted losses, and the balancer; the unchanged task if it weights its losses itself.

    Use the result for training, and `task` for evaluation: with changing weights, evaluations would not be comparable.

    Raises:
        UsageError: the task does not return separate losses, or `weights` is an unknown name.
    """
    if weights == "task":
        return task, None
    if weights not in get_args(LossWeights):
        raise UsageError(f"loss_weights = {weights!r} is not valid", known=f"valid values: {', '.join(get_args(LossWeights))}")
    if task.losses is None:
        raise UsageError(
            f"loss_weights = {weights!r} needs several losses, and the task has one",
            try_="Task(losses=lambda model, batch: {'T1': ..., 'T2': ...}), or loss_weights = 'task'",
        )
    balancer = GradNormBalancer(task.model, rule="paper" if weights == "gradnorm-paper" else "ratio")
    return replace(task, loss=TaskLosses(task.losses, balancer, _unscaled if scaler is None else scaler.get_scale)), balancer


def _unscaled() -> float:
    return 1.0
