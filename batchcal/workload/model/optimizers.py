"""Needs of optimizers beyond `step()`: a closure, or a notice that training or evaluation begins."""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from batchcal.workload.task import Task


def needs_closure(optimizer: Optimizer) -> bool:
    """True if `step` requires a closure that computes the loss again: the argument has no default (LBFGS), or the code refuses
    None (sharpness-aware minimisation)."""
    try:
        parameter = inspect.signature(optimizer.step).parameters.get("closure")
    except (TypeError, ValueError):  # some callables of C have no signature
        return False
    if parameter is None:
        return False
    return parameter.default is inspect.Parameter.empty or _refuses_none(optimizer)


def _refuses_none(optimizer: Optimizer) -> bool:
    """True if the code of `step` asserts that it has a closure, or raises without one."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(optimizer.step)))
        (function,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError, AttributeError):
        return False
    if not isinstance(function, ast.FunctionDef):
        return False
    return any(
        (isinstance(line, ast.Assert) and _compares(line.test, ast.IsNot))
        or (
            isinstance(line, ast.If)
            and _compares(line.test, ast.Is)
            and any(isinstance(statement, ast.Raise) for statement in line.body)
        )
        for line in function.body
    )


def _compares(test: ast.expr, operator: type[ast.cmpop]) -> bool:
    """`closure is None` or `closure is not None`; `not closure` and `closure`."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return operator is ast.Is and _is_closure(test.operand)
    if isinstance(test, ast.Compare):
        return _is_closure(test.left) and len(test.ops) == 1 and isinstance(test.ops[0], operator)
    return operator is ast.IsNot and _is_closure(test)


def _is_closure(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id == "closure"


def inner_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that `optimizer` is made of (a class of several, the base of sharpness-aware minimisation). Its own
    `state_dict` has nothing of their state."""
    inner: list[Optimizer] = []
    pending: list[Optimizer] = [optimizer]
    while pending:
        for value in vars(pending.pop()).values():
            values = list(value.values()) if isinstance(value, dict) else value
            for item in values if isinstance(values, list | tuple) else (values,):
                if (
                    isinstance(item, torch.optim.Optimizer)
                    and item is not optimizer
                    and not any(item is other for other in inner)
                ):
                    inner.append(item)
                    pending.append(item)
    return inner


def groups_with_a_rate(optimizer: Optimizer) -> list[dict[str, object]]:
    """Every parameter group that has a learning rate, those of the optimizers within it included, each once."""
    groups = [group for owner in (optimizer, *inner_optimizers(optimizer)) for group in owner.param_groups if "lr" in group]
    return list({id(group): group for group in groups}.values())


def set_mode(task: Task, *, training: bool) -> None:
    """Puts the model into training or evaluation mode, and the optimizer where it has modes.

    Schedule-free optimizers keep two versions of the parameters: one that the gradients are computed at, one to evaluate.
    """
    switch: object = getattr(task.optimizer, "train" if training else "eval", None)
    if callable(switch):
        switch()
    task.model.train(training)


@contextlib.contextmanager
def evaluated_parameters(task: Task) -> Iterator[list[Tensor] | None]:
    """Give the model the parameters that are evaluated, and restore the trained ones, of which a copy is yielded.

    None: the optimizer has no modes, or is in evaluation mode with the model; nothing is changed or copied.
    """
    train, evaluate = getattr(task.optimizer, "train", None), getattr(task.optimizer, "eval", None)
    if not (callable(train) and callable(evaluate) and task.model.training):
        yield None
        return
    copies = [parameter.detach().clone() for parameter in _parameters(task)]
    try:
        evaluate()
        yield copies
    finally:
        restore_trained_parameters(task, copies)


def restore_trained_parameters(task: Task, copies: list[Tensor]) -> None:
    """Put the optimizer into training mode, with exactly these parameters: the conversion between the modes rounds.

    Raises:
        ValueError: they are parameters of another optimizer.
    """
    switch = getattr(task.optimizer, "train", None)
    if not callable(switch):
        raise ValueError("the checkpoint belongs to an optimizer with a training mode and an evaluation mode")
    switch()
    with torch.no_grad():
        for parameter, copy in zip(_parameters(task), copies, strict=True):
            parameter.copy_(copy)


def _parameters(task: Task) -> list[Tensor]:
    return [parameter for group in task.optimizer.param_groups for parameter in group["params"]]
