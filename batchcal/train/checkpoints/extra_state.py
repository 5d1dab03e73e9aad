"""State that a training changes outside of its model and optimizer, and that its checkpoint must contain.

A task has no callbacks: its functions and the hooks of its optimizer keep a moving average of the weights, a schedule of the
learning rate, a discriminator with its own optimizer, a number of steps.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from types import CellType, FunctionType, MethodType
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from batchcal.core.units import MIB
from batchcal.workload.model.optimizers import inner_optimizers
from batchcal.workload.task import Task

LARGE_BYTES: Final = 16 * MIB
"""A larger object that no operation has changed is left out: the teacher of a distillation is constant and large."""
MOST_ITEMS: Final = 64
"""Items of each container that are searched: a list of modules has few."""
_Plain = bool | int | float


@runtime_checkable
class Stateful(Protocol):
    """A module, an optimizer or a schedule of torch, or any object like these."""

    def state_dict(self) -> object: ...

    def load_state_dict(self, state_dict: dict[str, object], /) -> object: ...


class ExtraState:
    """The stateful objects that the functions of a task and the hooks of its optimizer refer to, numbers that are attributes of
    the optimizer, and shapes of buffers that grow.

    Args:
        task: the task at its start, before a checkpoint is loaded.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._objects = _stateful_objects(task)
        self._marks = [_marks(_content(stateful)) for stateful in self._objects]
        self._optimizers = [task.optimizer, *inner_optimizers(task.optimizer)]
        self._numbers = [_numbers(optimizer) for optimizer in self._optimizers]
        self._shapes = {name: list(buffer.shape) for name, buffer in task.model.named_buffers()}

    def state(self) -> dict[str, object]:
        """Return the state as plain values and tensors."""
        own = {value.data_ptr() for value in self._task.model.state_dict().values() if isinstance(value, Tensor)}
        states: list[object] = []
        for stateful, marks in zip(self._objects, self._marks, strict=True):
            content = {name: value for name, value in _content(stateful).items() if not _is_of(value, own)}
            constant = _bytes(content) > LARGE_BYTES and _marks(_content(stateful)) == marks
            states.append(None if constant or not _is_plain(content) else content)
        return {
            "kinds": [type(stateful).__name__ for stateful in self._objects],
            "states": states,
            "numbers": [_numbers(optimizer) for optimizer in self._optimizers],
            "shapes": self._shapes,
        }

    def make_room(self, saved: object, model: Mapping[str, object]) -> None:
        """Give buffers that have grown during the training the shape that they have in the state `model`."""
        shapes = saved.get("shapes") if isinstance(saved, Mapping) else None
        for prefix, module in self._task.model.named_modules():
            for key, buffer in list(module.named_buffers(recurse=False)):
                name = f"{prefix}.{key}" if prefix else key
                value = model.get(name)
                same_initial_shape = isinstance(shapes, Mapping) and shapes.get(name) == list(buffer.shape)
                if same_initial_shape and isinstance(value, Tensor) and value.shape != buffer.shape:
                    module._buffers[key] = buffer.new_empty(value.shape)

    def restore(self, saved: object) -> None:
        """Raises:
        ValueError: `saved` is the state of other objects. A checkpoint of an earlier version has no such state.
        """
        if not isinstance(saved, Mapping):
            return
        kinds = [type(stateful).__name__ for stateful in self._objects]
        if saved["kinds"] != kinds:
            raise ValueError(
                f"the functions of the task use {', '.join(kinds) or 'no object with a state'}, but the checkpoint has the state "
                f"of {', '.join(saved['kinds']) or 'none'}"
            )
        for stateful, state in zip(self._objects, saved["states"], strict=True):
            if isinstance(state, dict) and isinstance(stateful, nn.Module):
                stateful.load_state_dict(state, strict=False)
            elif isinstance(state, dict):
                stateful.load_state_dict(state)
        for optimizer, numbers in zip(self._optimizers, saved["numbers"], strict=True):
            vars(optimizer).update(numbers)


def _stateful_objects(task: Task) -> list[Stateful]:
    """Return the objects in the order in which the task's functions name them, which is the same in the next process."""
    visited = {id(item) for item in (*task.model.modules(), task.optimizer, *inner_optimizers(task.optimizer))}
    hooks = [
        *getattr(task.optimizer, "_optimizer_step_pre_hooks", {}).values(),
        *getattr(task.optimizer, "_optimizer_step_post_hooks", {}).values(),
    ]
    queue: deque[object] = deque((task.loss, task.losses, task.eval_step, task.metrics, *hooks))
    objects: list[Stateful] = []
    while queue:
        value = queue.popleft()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, Stateful) and not isinstance(value, type):
            objects.append(value)
        else:
            queue.extend(_inside(value))
    return objects


def _inside(value: object) -> Iterable[object]:
    """Values that a function refers to."""
    if isinstance(value, FunctionType):
        named = (value.__globals__.get(name) for name in value.__code__.co_names)
        return [*(value.__closure__ or ()), *(value.__defaults__ or ()), *(item for item in named if isinstance(item, Stateful))]
    if isinstance(value, CellType):
        try:
            return [value.cell_contents]
        except ValueError:  # not bound yet
            return []
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, list | tuple):
        return islice(value, MOST_ITEMS)
    if isinstance(value, dict):
        return islice(value.values(), MOST_ITEMS)
    own = getattr(value, "__dict__", None)
    if not callable(value) or not isinstance(own, dict) or isinstance(value, type):
        return []
    return [*own.values(), inspect.getattr_static(type(value), "__call__", None)]


def _content(stateful: Stateful) -> dict[str, object]:
    state = stateful.state_dict()
    return dict(state) if isinstance(state, Mapping) else {}


def _marks(content: Mapping[str, object]) -> list[tuple[int, int]]:
    """Version of each tensor. Every in-place operation changes it."""
    return [(value.data_ptr(), value._version) for value in content.values() if isinstance(value, Tensor)]


def _is_of(value: object, own: set[int]) -> bool:
    """True if a value is a tensor of the model. A wrapper of the model has it in its own state."""
    return isinstance(value, Tensor) and value.numel() > 0 and value.data_ptr() in own


def _bytes(content: Mapping[str, object]) -> int:
    return sum(value.nbytes for value in content.values() if isinstance(value, Tensor))


def _is_plain(value: object) -> bool:
    """True if a checkpoint may contain it: only tensors and plain values are read from a checkpoint."""
    if value is None or type(value) in (bool, int, float, complex, str) or type(value) in (Tensor, nn.Parameter):
        return True
    if type(value) in (list, tuple):
        assert isinstance(value, list | tuple)
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(_is_plain(part) for pair in value.items() for part in pair)


def _numbers(optimizer: torch.optim.Optimizer) -> dict[str, _Plain]:
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, bool | int | float) and not name.startswith("_")
    }
