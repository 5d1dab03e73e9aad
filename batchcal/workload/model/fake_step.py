"""A step on paper: run on fake tensors, which hold no memory, and the blocks of memory that it would hold at once."""

from __future__ import annotations

import copy
import math
import random
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from batchcal.core.errors import UserCodeError
from batchcal.workload.data.sample_size import nest_bytes
from batchcal.workload.data.worst_case import Part
from batchcal.workload.model.operators import OperatorWatch
from batchcal.workload.step import map_tensors
from batchcal.workload.task import Task

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


class TraceTimedOut(Exception):
    """The trace of a step took too long."""


class LiveBlocks(OperatorWatch):
    """The blocks of memory that a step holds at once, tensor by tensor; also for fake tensors.

    Follows every storage that an operation returns until it is freed; `peak` has the blocks at the moment of most memory.

    Tensors that exist before (parameters, buffers, the batch) are passed to `ignore` and are not counted.
    """

    def __init__(self, *, until_s: float = math.inf) -> None:
        """`until_s`: time of `time.monotonic` after which an operation raises TraceTimedOut."""
        super().__init__()
        self._until_s = until_s
        self._live: dict[int, int] = {}
        self._ignored: dict[int, torch.UntypedStorage] = {}
        self._bytes = 0
        self._most = 0
        self._events: list[tuple[int, int]] = []
        """Storages that appeared, with their bytes, and that were freed, with 0. To list the blocks at each new maximum would
        take quadratic time: the graph of a recurrent model has tens of thousands of blocks."""
        self._events_until_peak = 0

    @property
    def peak(self) -> tuple[int, ...]:
        """Sizes in bytes of the blocks that were there when there was most."""
        live: dict[int, int] = {}
        for key, size in self._events[: self._events_until_peak]:
            if size:
                live[key] = size
            else:
                live.pop(key, None)
        return tuple(live.values())

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count these tensors."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._ignored[id(storage)] = storage  # kept, so that no other storage gets its id

    def ran(self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
        if time.monotonic() > self._until_s:
            raise TraceTimedOut
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._track(leaf.untyped_storage())

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._live or key in self._ignored:
            return
        size = storage.nbytes()
        self._live[key] = size
        self._bytes += size
        self._events.append((key, size))
        weakref.finalize(storage, self._freed, key)
        if self._bytes > self._most:
            self._most = self._bytes
            self._events_until_peak = len(self._events)

    def _freed(self, key: int) -> None:
        self._bytes -= self._live.pop(key, 0)
        self._events.append((key, 0))


def run_step(task: Task, batch: object, part: Part) -> None:
    """Forward and backward of training, or the forward pass of evaluation. No update."""
    device_type = next((parameter.device.type for parameter in task.model.parameters()), "cpu")
    with torch.autocast(device_type, dtype=task.autocast, enabled=task.autocast is not None):
        if part == "train":
            loss = task.loss(task.model, batch)
        else:
            with torch.no_grad():
                (task.eval_step or task.loss)(task.model, batch)
            return
    if loss.requires_grad:  # a constant where nothing is labelled
        loss.backward()


def make_fake(model: nn.Module, fake: FakeTensorMode) -> dict[int, nn.Parameter]:
    """Puts fake tensors in the place of parameters and buffers. Returns the fake parameters by the id of the real ones."""
    from torch._subclasses.fake_tensor import FakeTensor

    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if isinstance(parameter, FakeTensor):
                continue
            if id(parameter) not in replaced:
                replaced[id(parameter)] = nn.Parameter(
                    fake.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad
                )
            module._parameters[name] = replaced[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and not isinstance(buffer, FakeTensor):
                module._buffers[name] = fake.from_tensor(buffer)
    return replaced


@dataclass(frozen=True)
class OptimizerMemory:
    """Bytes beyond parameters and gradients."""

    state_bytes: int
    """Kept once it has stepped."""
    step_bytes: int
    """Bytes that the step takes in addition, and frees."""
    note: str = ""
    """Reason if the values are not from a step of the optimizer."""


class FakeStep:
    """A task lent for steps on paper; see `fake_step`."""

    def __init__(self, task: Task, fake: FakeTensorMode) -> None:
        self._task, self._fake = task, fake
        self._fakes = make_fake(task.model, fake)
        _rewire_recurrent(task.model, self._fakes)
        self._parameters = list(self._fakes.values())
        self._device = next((parameter.device for parameter in self._parameters), torch.device("cpu"))
        with fake:
            for parameter in self._parameters:
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

    def peak_bytes(self, batch: object) -> int:
        """Most that forward and backward over `batch`, which is on the host, hold at once beyond the batch, parameters, buffers
        and the gradients of all parameters: as while micro-batches accumulate.

        Raises:
            UserCodeError: the step needs values, which tensors on paper do not have, or fails for another reason.
        """
        inputs: list[Tensor] = []

        def faked(tensor: Tensor) -> Tensor:
            inputs.append(self._fake.from_tensor(tensor).to(self._device))
            return inputs[-1]

        model = self._task.model
        with self._fake:
            batch = map_tensors(batch, faked)
        blocks = LiveBlocks()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        blocks.ignore([*self._parameters, *gradients, *model.buffers(), *inputs])
        model.train()
        try:
            with self._fake, blocks:
                run_step(self._task, batch, "train")
        except Exception as error:
            raise UserCodeError(
                f"the step cannot run on fake tensors: {type(error).__name__}: {str(error).strip()[:200]}",
                known="fake tensors have shapes but no values, so .item(), .tolist() and boolean indices fail",
                try_="batchcal calibrate SPEC, which runs the real step",
            ) from error
        return sum(blocks.peak)

    def optimizer(self) -> OptimizerMemory:
        """Measured with a step of a new copy of the optimizer; if that fails, from its current state."""
        optimizer = self._task.optimizer
        try:
            return self._stepped(copy.copy(optimizer))
        except Exception as error:  # noqa: BLE001 - an optimizer that wants more than its copy has
            note = f"{type(optimizer).__name__} cannot run on fake tensors ({type(error).__name__}): "
        state_bytes = nest_bytes(list(optimizer.state.values()))
        if state_bytes:
            return OptimizerMemory(state_bytes, 0, note + "its state is assumed to keep its current size")
        learning = sum(parameter.nbytes for parameter in self._parameters if parameter.requires_grad)
        return OptimizerMemory(2 * learning, 0, note + "its state is assumed to be two values per parameter, as for Adam")

    def _stepped(self, optimizer: Optimizer) -> OptimizerMemory:
        """`optimizer` is ours: it forgets its state and parameters, and steps those on paper."""
        groups = optimizer.param_groups
        optimizer.state = defaultdict(dict)
        blocks = LiveBlocks()
        with self._fake:
            optimizer.param_groups = [
                {**group, "params": [self._of(parameter) for parameter in group["params"]]} for group in groups
            ]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            blocks.ignore([*parameters, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
            with blocks:
                optimizer.step()
        state_bytes = nest_bytes(list(optimizer.state.values()))
        return OptimizerMemory(state_bytes, max(0, sum(blocks.peak) - state_bytes))

    def _of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The one on paper, with a gradient where it can have one."""
        fake = self._fakes.get(id(parameter))
        if fake is None:  # not one of the model's, such as the temperature of a loss
            fake = nn.Parameter(self._fake.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad)
            fake.grad = torch.empty_like(fake) if fake.requires_grad else None
        return fake


@contextmanager
def fake_step(task: Task) -> Iterator[FakeStep]:
    """`task` for steps on paper. While entered its model holds fake tensors; afterwards model, optimizer, gradients and the
    random states of Python and torch are what they were. What a step changes inside a list or dict of the model's own stays."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = [(module, dict(vars(module))) for module in task.model.modules()]
    optimized = [parameter for group in task.optimizer.param_groups for parameter in group["params"]]
    gradients = [(parameter, parameter.grad) for parameter in (*task.model.parameters(), *optimized)]
    python_state = random.getstate()
    try:
        for module, attributes in before:
            for name in ("_parameters", "_buffers"):
                vars(module)[name] = dict(attributes[name])
        with torch.random.fork_rng(devices=[]):
            yield FakeStep(task, FakeTensorMode(allow_non_fake_inputs=True))
    finally:
        random.setstate(python_state)
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _rewire_recurrent(model: nn.Module, fakes: Mapping[int, nn.Parameter]) -> None:
    """Recurrent layers keep a second list of their parameters, and compute with that one."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            vars(module)["_flat_weights"] = [
                weight if weight is None else fakes.get(id(weight), weight) for weight in vars(module)["_flat_weights"]
            ]
