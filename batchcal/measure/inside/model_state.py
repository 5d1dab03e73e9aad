"""State that a forward pass changes. It is restored, so that evaluations of one model can be compared."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from typing import Final

import torch
from torch import Tensor, nn

from batchcal.core.units import MIB
from batchcal.workload.task import Task

_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has: its parameters, buffers, submodules, hooks and mode."""


LARGEST_BYTES: Final = 16 * MIB
"""Maximum size of a tensor among the attributes that is copied. A larger one is treated as a constant."""


def seed_all(seed: int) -> None:
    """Seed every global generator that a loss may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    seed_numpy: object = getattr(getattr(sys.modules.get("numpy"), "random", None), "seed", None)
    if callable(seed_numpy):
        seed_numpy(seed)


class ModelState:
    """The buffers of a model, its frozen parameters that a forward pass changes, and its plain attributes (a queue, running
    averages, the hidden state of the last batch), as they were when this object was created.

    Args:
        changing: changes what a forward pass changes. Frozen parameters may be large: unchanged ones are not copied.
    """

    def __init__(self, task: Task, changing: Callable[[], object]) -> None:
        frozen = [parameter for parameter in task.model.parameters() if not parameter.requires_grad]
        before = [_sum(parameter) for parameter in frozen]
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in task.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self._attributes = [(attributes, _plain_values(attributes)) for attributes in _attributes_of(task)]
        changing()
        moved = [parameter for parameter, total in zip(frozen, before, strict=True) if _sum(parameter) != total]
        # A moving average of the weights: one step of it makes no difference to the comparison.
        self._frozen = [(parameter, parameter.detach().clone()) for parameter in moved]

    def restore(self) -> None:
        """Restore everything."""
        for module, name, buffer, value_before in self._buffers:
            # The same tensor again: a forward pass may have replaced it by another one.
            buffer.data.copy_(value_before)
            module._buffers[name] = buffer
        for parameter, value_before in self._frozen:
            parameter.data.copy_(value_before)
        for attributes, values in self._attributes:
            for name, value in values.items():
                attributes[name] = _copy(value)

    def changed(self) -> bool:
        """Return True if anything has changed."""
        return (
            any(not _equal(module._buffers.get(name), value) for module, name, _, value in self._buffers)
            or any(not torch.equal(parameter, value) for parameter, value in self._frozen)
            or any(
                not _equal(attributes.get(name), value)
                for attributes, values in self._attributes
                for name, value in values.items()
            )
        )


def _sum(value: Tensor) -> complex:
    return complex(value.detach().sum(dtype=None if value.is_complex() else torch.float64).item())


def _attributes_of(task: Task) -> Iterator[MutableMapping[str, object]]:
    """Yield the attributes of the modules of the model, and of a loss that is an object."""
    loss: object = task.loss
    holders = [*task.model.modules(), *(loss.modules() if isinstance(loss, nn.Module) else (loss,))]
    for holder in {id(holder): holder for holder in holders}.values():
        attributes: object = getattr(holder, "__dict__", None)
        if isinstance(attributes, MutableMapping):
            yield attributes


def _plain_values(attributes: MutableMapping[str, object]) -> dict[str, object]:
    return {name: _copy(value) for name, value in attributes.items() if name not in _OF_TORCH and _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Return True if a value consists only of numbers, texts, tensors and containers of them, so that a copy can replace it."""
    if value is None or type(value) in (bool, int, float, complex, str):
        return True
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and value.nbytes <= LARGEST_BYTES
    if type(value) in (list, tuple, deque):
        assert isinstance(value, list | tuple | deque)
        return all(map(_is_plain, value))
    return type(value) is dict and all(map(_is_plain, value.values()))


def _copy(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_copy(item) for item in value)
    if isinstance(value, deque):
        return deque(map(_copy, value), maxlen=value.maxlen)
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _equal(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, list | tuple | deque) and isinstance(right, list | tuple | deque):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right
