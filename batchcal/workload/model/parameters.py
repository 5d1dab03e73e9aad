"""The parameters that a task trains: those of its model, and those that only its optimizer holds."""

from __future__ import annotations

from torch import Tensor

from batchcal.workload.task import Task


def optimizer_parameters(task: Task) -> list[Tensor]:
    """All parameters of the optimizer, in the order of its groups."""
    return [parameter for group in task.optimizer.param_groups for parameter in group["params"]]


def parameters_outside_model(task: Task) -> list[Tensor]:
    """Parameters that the optimizer holds and the model does not, such as the learned temperature of a loss."""
    of_model = {id(parameter) for parameter in task.model.parameters()}
    return [parameter for parameter in optimizer_parameters(task) if id(parameter) not in of_model]


def trained_parameters(task: Task) -> list[Tensor]:
    """Every parameter of model and optimizer once: those of the model first."""
    return [*task.model.parameters(), *parameters_outside_model(task)]
