"""Training steps that the task's own code makes: `backward()` or `step()` in the loss or in a hook.

batchcal weighs the loss of each micro-batch, calls backward() and steps the optimizer once for the group. If the loss does so
too, gradients have no weight, or the optimizer makes a second step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from batchcal.core.errors import UserCodeError
from batchcal.workload.model.optimizers import inner_optimizers
from batchcal.workload.model.parameters import optimizer_parameters
from batchcal.workload.task import Task


@contextlib.contextmanager
def observed_steps() -> Iterator[list[Optimizer]]:
    """Yield a list of the optimizers whose `step` is called within the context, in the order of the calls."""
    stepped: list[Optimizer] = []

    def observe(optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        stepped.append(optimizer)

    handle = register_optimizer_step_pre_hook(observe)
    try:
        yield stepped
    finally:
        handle.remove()


class LossWithoutTraining:
    """The loss of a task. It is refused if it trains.

    Raises:
        UserCodeError: a call changes gradients of the optimizer's parameters, or steps the optimizer.
    """

    def __init__(self, task: Task) -> None:
        self._loss: Callable[..., Tensor] = task.loss
        self._optimizers = [task.optimizer, *inner_optimizers(task.optimizer)]
        self._parameters = optimizer_parameters(task)

    def __call__(self, model: object, batch: object) -> Tensor:
        without = [parameter for parameter in self._parameters if parameter.grad is None]
        with observed_steps() as stepped:
            loss = self._loss(model, batch)
        if any(optimizer is own for optimizer in stepped for own in self._optimizers):
            raise _refused("steps the optimizer")
        if any(parameter.grad is not None for parameter in without):
            raise _refused("calls backward()")
        return loss


def _refused(does: str) -> UserCodeError:
    return UserCodeError(
        f"the loss function {does}",
        known="batchcal weighs the loss of each micro-batch, calls backward(), and steps the optimizer once per effective batch",
        try_="let the loss function only compute the loss and return it, without zero_grad(), backward() and step()",
    )
