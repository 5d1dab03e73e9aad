"""The optimizer step, which is both measured and trained: forward, backward, update, evaluation.

A group of micro-batches makes one update. It is exact for every division of the samples and does not hold the complete group:

    for batch, samples in group:
        batch = move(batch, device)
        weight = batch_weight(task, batch, samples)
        forward_backward(task, batch, weight=weight, scaler=scaler)      # gradients accumulate weight x mean
        total += weight
    finish_group(task, total, scaler=scaler)                             # divides by the total, updates

Only the ratios of the weights count. `runtime.group` divides all of them by the expected total, so that values scaled for float16
have the same magnitude as in an ordinary loop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from batchcal.core.errors import UserCodeError
from batchcal.workload.data.fetch import reads_together
from batchcal.workload.data.rows import rows_of
from batchcal.workload.model.clipping import clip
from batchcal.workload.model.parameters import optimizer_parameters
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
    """The scaler that prevents float16 gradients from vanishing; None if the task does not compute in float16."""
    return GradScaler(device.type) if task.autocast is torch.float16 else None


def move(batch: object, device: torch.device) -> object:
    """`batch` with every tensor in it on `device`; see `map_tensors`. Objects with a method `to` move themselves.

    On CUDA the copy of pinned tensors is asynchronous.
    """
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"), lambda part: part.to(device))


@runtime_checkable
class Movable(Protocol):
    """An object that moves itself, such as the encoding of a tokenizer."""

    def to(self, device: torch.device) -> object: ...


def map_tensors(
    batch: object, change: Callable[[Tensor], Tensor], move_object: Callable[[Movable], object] | None = None
) -> object:
    """`batch` with every tensor in it changed; container types are kept, and values without tensors are not changed.

    Accepts nested mappings, lists, tuples, named tuples and dataclasses. Other objects with a method `to` are passed to
    `move_object`.
    """
    if isinstance(batch, Tensor):
        return change(batch)
    # Plain values first: a Protocol check takes 10 us in Python 3.11, and tuples hold hundreds of values.
    if batch is None or isinstance(batch, str | bytes | int | float | complex | type):
        return batch
    # Also a PackedSequence, which is a named tuple, too.
    if move_object is not None and type(batch) not in (dict, list, tuple) and isinstance(batch, Movable):
        return move_object(batch)
    if isinstance(batch, Mapping):
        return _map_mapping(batch, change, move_object)
    if isinstance(batch, list | tuple):
        items = [map_tensors(item, change, move_object) for item in batch]
        make: Callable[..., object] = getattr(batch, "_make", type(batch))  # a named tuple takes its items one by one
        return make(items)
    if is_dataclass(batch):
        clone = copy.copy(batch)
        for field in fields(batch):
            # Past `frozen`, and past `replace`, which refuses fields that __init__ does not take.
            object.__setattr__(clone, field.name, map_tensors(getattr(batch, field.name), change, move_object))
        return clone
    return batch


def _map_mapping(
    batch: Mapping[object, object], change: Callable[[Tensor], Tensor], move_object: Callable[[Movable], object] | None
) -> object:
    changed = {key: map_tensors(value, change, move_object) for key, value in batch.items()}
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return changed
    clone = copy.copy(batch)  # a defaultdict and the like cannot be made from their items alone
    clone.update(changed)
    return clone


def batch_weight(task: Task, batch: object, samples: int) -> float:
    """Weight of the batch's mean loss in its group: `weight_of`, or its number of samples; 0 for a batch without a sample.

    Samples that the collate function dropped do not count.

    Raises:
        UserCodeError: `weight_of` returns something other than a number, or a negative or infinite number.
    """
    if batch is None:
        return 0.0
    if task.weight_of is None:
        drops = task.collate_fn is not None or reads_together(task.train_data)
        return float(rows_of(batch, samples) if drops else samples)
    result: object = task.weight_of(batch)
    weight = result.item() if isinstance(result, Tensor) and result.numel() == 1 else result
    if isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0:
        return float(weight)
    raise UserCodeError(
        f"weight_of returned {_description(result)}",
        known="the weight of a batch is a number of 0 or more: the number of samples or tokens in its mean loss",
        try_="weight_of=lambda batch: float(batch['mask'].sum())",
    )


def forward_backward(task: Task, batch: object, *, weight: float, scaler: GradScaler | None) -> float:
    """Add the gradients of `weight` x the mean loss of `batch`, which is on the model's device; return the mean loss.

    Only the ratio of the weights in a group counts. A loss that does not depend on any parameter (a constant for a batch without
    a label) adds no gradient.

    Raises:
        UserCodeError: the loss is not a scalar tensor. Errors of user code pass through.
    """
    loss = loss_of(task, batch)
    if loss.requires_grad:
        weighted = loss if weight == 1.0 else loss * weight
        (weighted if scaler is None else scaler.scale(weighted)).backward()
    return float(loss.detach())


def loss_of(task: Task, batch: object) -> Tensor:
    """The mean loss of `batch`, which is on the model's device: the forward pass of a step.

    Raises:
        UserCodeError: the loss is not a scalar tensor.
    """
    with _autocast(task):
        loss: object = task.loss(task.model, batch)
    return _checked(loss)


class Update(NamedTuple):
    """The result of an optimizer's step."""

    grad_norm: float | None
    """Before clipping, where `max_norm` was given."""
    overflowed: bool
    """The scaler left the step out, because a float16 gradient is infinite or NaN."""


def finish_group(task: Task, total_weight: float, *, scaler: GradScaler | None, max_norm: float | None = None) -> Update:
    """`update`, then `clear_gradients`."""
    result = update(task, total_weight, scaler=scaler, max_norm=max_norm)
    clear_gradients(task)
    return result


def update(
    task: Task,
    total_weight: float,
    *,
    scaler: GradScaler | None,
    max_norm: float | None = None,
    again: Callable[[], float] | None = None,
) -> Update:
    """Divides the gradients by the total weight of the group and steps the optimizer. The gradients stay.

    Args:
        max_norm: scale the gradient down to this Euclidean norm where it is larger; infinite: leave it, and report its norm.
        again: for an optimizer whose step needs a closure: computes the gradients of the group again, divided already, and
            returns the loss.

    Raises:
        UserCodeError: the weights of the group sum to 0.
    """
    if total_weight <= 0:
        raise UserCodeError(
            f"the weights of the micro-batches of an optimizer step sum to {total_weight:g}",
            known="batchcal divides the gradients by this sum",
            try_="weight_of=the number of elements in the mean loss; at least one micro-batch must have a weight above 0",
        )
    if scaler is not None:
        scaler.unscale_(task.optimizer)
    parameters = optimizer_parameters(task)
    if total_weight != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(total_weight)
    norm = None if max_norm is None else clip(parameters, max_norm)
    if again is not None:
        task.optimizer.step(_clipped(again, parameters, max_norm))
    elif scaler is None:
        task.optimizer.step()
    else:
        # torch does not report a skipped step; only a skipped step lowers the scale.
        before = scaler.get_scale()
        scaler.step(task.optimizer)
        scaler.update()
        return Update(norm, scaler.get_scale() < before)
    return Update(norm, overflowed=False)


def _clipped(again: Callable[[], float], parameters: list[Tensor], max_norm: float | None) -> Callable[[], float]:
    if max_norm is None:
        return again
    limit = max_norm

    def closure() -> float:
        loss = again()
        clip(parameters, limit)
        return loss

    return closure


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
            f"loss returned {_description(loss)}",
            known="loss must return a tensor with gradients and one value, the mean over the batch",
            try_=_way_to_a_tensor(loss),
        )
    if loss.numel() == 1 and not loss.is_floating_point():
        raise UserCodeError(
            f"loss returned {_description(loss)}",
            known="an integer has no gradient; loss must return one floating-point number, the mean over the batch",
            try_="return functional.cross_entropy(model(inputs), targets), and count in Task(metrics=...)",
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise UserCodeError(
            f"loss returned {_description(loss)}",
            known="loss must return one floating-point number, the mean over the batch",
            try_="loss.mean(), or reduction='mean'",
        )
    return loss.reshape(())


def _way_to_a_tensor(result: object) -> str:
    """Hint for a task that returns the loss inside another value, as other trainers expect it."""
    if isinstance(result, Mapping):
        if isinstance(result.get("loss"), Tensor):
            return "return result['loss']"
        if result and all(isinstance(value, Tensor) for value in result.values()):
            return "return sum(result.values())"
    if isinstance(result, list | tuple) and result and isinstance(result[0], Tensor):
        return "return the loss alone, such as result[0]"
    if isinstance(getattr(result, "loss", None), Tensor):
        return "return result.loss"
    if result is None:
        return "return functional.cross_entropy(model(inputs), targets): the function has no return value"
    return "return functional.cross_entropy(model(inputs), targets), without .item()"


def _description(value: object) -> str:
    """`a float`, `an int`, `a tensor of shape (32, 10) and type torch.float32`."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    if value is None or isinstance(value, int | float):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
