"""The one step: what is measured and what is trained, forward, backward, update and evaluation. There is no second copy.

A group of micro-batches makes one update, exact however the samples were split and without holding the group:

    for batch, samples in group:
        batch = move(batch, device)
        weight = batch_weight(task, batch, samples)
        forward_backward(task, batch, weight=weight, scaler=scaler)      # gradients accumulate weight x mean
        total += weight
    finish_group(task, total, scaler=scaler)                             # divides by the total, updates
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from batchcal.core.errors import UserCodeError
from batchcal.workload.task import Task


def prepare(task: Task, device: torch.device) -> None:
    """Moves the model, and what the optimizer holds, to `device`. The optimizer's parameters stay the objects they are.

    State that the optimizer already has (a loaded one) moves along, but for a counter that the optimizer wants on the CPU.
    """
    task.model.to(device)
    for group in task.optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.device != device:
                # Not one of the model's, such as the temperature of a loss: moved in place, as nn.Module does it.
                parameter.data = parameter.data.to(device)
            state = task.optimizer.state.get(parameter)
            if not state:
                continue
            on_device = bool(group.get("capturable")) or bool(group.get("fused"))
            for name, value in state.items():
                if name != "step" or on_device:
                    state[name] = move(value, device)


def make_scaler(task: Task, device: torch.device) -> GradScaler | None:
    """What keeps float16 gradients from vanishing; None where the task does not compute in float16."""
    return GradScaler(device.type) if task.autocast is torch.float16 else None


def move(batch: object, device: torch.device) -> object:
    """`batch` with every tensor in it on `device`; see `map_tensors`. Objects with a method `to` are asked to move themselves.

    On CUDA the copy of pinned tensors runs beside the host.
    """
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"), lambda part: part.to(device))


@runtime_checkable
class Movable(Protocol):
    """What moves itself, such as a tokenizer's encoding."""

    def to(self, device: torch.device) -> object: ...


def map_tensors(batch: object, change: Callable[[Tensor], Tensor], ask: Callable[[Movable], object] | None = None) -> object:
    """`batch` with every tensor in it changed; types of containers are kept, what holds no tensor is passed on as it is.

    Any nest of mappings, lists, tuples, named tuples and dataclasses; other objects with a method `to` are given to `ask`.
    """
    if isinstance(batch, Tensor):
        return change(batch)
    # Plain things before all else: to ask one whether it can move takes 10 us in Python 3.11, and tuples hold hundreds.
    if batch is None or isinstance(batch, str | bytes | int | float | complex | type):
        return batch
    # Also a PackedSequence, which is a named tuple besides.
    if ask is not None and type(batch) not in (dict, list, tuple) and isinstance(batch, Movable):
        return ask(batch)
    if isinstance(batch, Mapping):
        return _map_mapping(batch, change, ask)
    if isinstance(batch, list | tuple):
        items = [map_tensors(item, change, ask) for item in batch]
        make: Callable[..., object] = getattr(batch, "_make", type(batch))  # a named tuple takes its items one by one
        return make(items)
    if is_dataclass(batch):
        clone = copy.copy(batch)
        for field in fields(batch):
            # Past `frozen`, and past `replace`, which refuses fields that __init__ does not take.
            object.__setattr__(clone, field.name, map_tensors(getattr(batch, field.name), change, ask))
        return clone
    return batch


def _map_mapping(
    batch: Mapping[object, object], change: Callable[[Tensor], Tensor], ask: Callable[[Movable], object] | None
) -> object:
    changed = {key: map_tensors(value, change, ask) for key, value in batch.items()}
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return changed
    clone = copy.copy(batch)  # a defaultdict and the like cannot be made from their items alone
    clone.update(changed)
    return clone


def batch_weight(task: Task, batch: object, samples: int) -> float:
    """What the batch's mean loss weighs in its group: `weight_of`, or its number of samples.

    Raises:
        UserCodeError: `weight_of` returns what is no number, is negative or not finite.
    """
    if task.weight_of is None:
        return float(samples)
    given: object = task.weight_of(batch)
    weight = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    if isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0:
        return float(weight)
    raise UserCodeError(
        f"weight_of returned {_said(given)}",
        known="the weight of a batch is a number, 0 or more: how many samples, or tokens, its mean loss stands for",
        try_="weight_of=lambda batch: float(batch['mask'].sum())",
    )


def forward_backward(task: Task, batch: object, *, weight: float, scaler: GradScaler | None) -> float:
    """Adds the gradients of `weight` x the mean loss of `batch`, which is on the model's device; returns the mean loss.

    Only the ratio of the weights in a group counts.

    Raises:
        UserCodeError: the loss is no scalar tensor, or nothing can be learned from it. What the user's code raises is let pass.
    """
    with _autocast(task):
        mean: object = task.loss(task.model, batch)
    loss = _checked(mean)
    weighted = loss * weight
    (weighted if scaler is None else scaler.scale(weighted)).backward()
    return float(loss.detach())


def finish_group(task: Task, total_weight: float, *, scaler: GradScaler | None, max_norm: float | None = None) -> float | None:
    """`update`, then `clear_gradients`."""
    norm = update(task, total_weight, scaler=scaler, max_norm=max_norm)
    clear_gradients(task)
    return norm


def update(task: Task, total_weight: float, *, scaler: GradScaler | None, max_norm: float | None = None) -> float | None:
    """Divides the gradients by the total weight of the group and steps the optimizer. The gradients stay.

    Args:
        max_norm: scale the gradient down to this Euclidean norm where it is larger; infinite: leave it, and tell its norm.

    Returns:
        The norm before it was clipped, where `max_norm` is given.

    Raises:
        UserCodeError: the weights of the group sum to 0.
    """
    if total_weight <= 0:
        raise UserCodeError(
            f"the weights of a group sum to {total_weight:g}",
            known="gradients are divided by that sum",
            try_="let weight_of count what the loss is the mean of; one batch in a group must have some",
        )
    if scaler is not None:
        scaler.unscale_(task.optimizer)
    parameters: list[Tensor] = [parameter for group in task.optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(total_weight)
    norm = None
    if max_norm is not None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = torch.nn.utils.get_total_norm(gradients)
        norm = float(whole)
        if norm > max_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, whole)
    if scaler is None:
        task.optimizer.step()
    else:
        scaler.step(task.optimizer)
        scaler.update()
    return norm


class LossIsNoNumber(UserCodeError):
    """The loss of a batch is infinite, or not a number."""


def clear_gradients(task: Task) -> None:
    """Lets the gradients go."""
    task.optimizer.zero_grad(set_to_none=True)
    task.model.zero_grad(set_to_none=True)  # those that the optimizer does not know would grow for ever


def evaluate(task: Task, batch: object, *, device: torch.device | None = None) -> object:
    """`eval_step`, or the loss, without gradients. The caller sets the model's mode.

    Args:
        device: where to move the batch before; None: it is there.
    """
    if device is not None:
        batch = move(batch, device)
    with torch.no_grad(), _autocast(task):
        result: object = (task.eval_step or task.loss)(task.model, batch)
    return result


def _autocast(task: Task) -> torch.autocast:
    first = next(task.model.parameters(), None)
    return torch.autocast("cpu" if first is None else first.device.type, dtype=task.autocast, enabled=task.autocast is not None)


def _checked(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        raise UserCodeError(
            f"loss returned {_said(loss)}",
            known="it must return a tensor with one value, the mean over the batch, from which gradients flow back",
            try_="return functional.cross_entropy(model(inputs), targets), without .item()",
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise UserCodeError(
            f"loss returned {_said(loss)}",
            known="the gradient is that of one real number, the mean over the batch",
            try_="loss.mean(), or reduction='mean'",
        )
    if not loss.requires_grad:
        raise UserCodeError(
            "no gradient flows back from the loss",
            known="it does not depend on a parameter that requires one: detached, made under no_grad, or all are frozen",
            try_="compute the loss from model(...) itself, and leave one parameter with requires_grad=True",
        )
    return loss.reshape(())


def _said(value: object) -> str:
    """`a float`, `an int`, `a tensor of shape (32, 10) and type torch.float32`."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    if value is None or isinstance(value, int | float):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
