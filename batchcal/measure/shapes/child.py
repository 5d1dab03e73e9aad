"""Inside a child: traces a task with parameters that take no memory. The parent names this module and never calls it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from batchcal.calibration.records.memory_model import ShapePoint
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import ChildContext
from batchcal.measure.inside.static import FakeTrace
from batchcal.measure.shapes.job import TraceArguments
from batchcal.workload.data.worst_case import WorstCase
from batchcal.workload.spec.load import load_task
from batchcal.workload.task import Task

SCAN_LIMIT_S: Final = 0.5
DEVICE: Final = "cpu"


def trace(request: TraceArguments, context: ChildContext) -> JSON:
    """Load the task with every parameter faked on creation, and run its step on real batches, which are faked, too."""
    context.phase("load")
    random.seed(request.seed)
    torch.manual_seed(request.seed)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with parameters_without_memory(fake):
        task = load_task(request.reference, device=DEVICE)
    context.phase("measure")
    points = _step(task, request, fake) if request.batches else ()
    parameters = list(task.model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "static_bytes": sum(map(_bytes, parameters)) + _state_bytes(task, fake),
        "gradient_bytes": sum(_bytes(parameter) for parameter in parameters if parameter.requires_grad),
        "points": [point.model_dump(mode="json") for point in points],
    }


def _step(task: Task, request: TraceArguments, fake: FakeTensorMode) -> tuple[ShapePoint, ...]:
    """Memory of a training step, by micro-batch."""
    worst = WorstCase.of(task, "train", limit_s=SCAN_LIMIT_S, seed=request.seed)
    traced = FakeTrace(task, worst.batch, limit_s=request.limit_s, fake=fake, slow_s=request.limit_s)
    samples = worst.facts(task).train_samples or max(request.batches)
    # Two sizes even if there are few samples: two points make a curve.
    traced.trace([size for place, size in enumerate(request.batches) if size <= samples or place < 2])
    return traced.shapes().get("train", ())


@contextmanager
def parameters_without_memory(fake: FakeTensorMode) -> Iterator[None]:
    """Replace every parameter that a module registers by a fake one before anything is written to it: the memory of `torch.empty`
    is never touched. Data stay real."""

    def to_fake(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if isinstance(parameter, FakeTensor):
            return parameter  # tied: one parameter under two names
        return nn.Parameter(fake.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad)

    # torch declares that a hook returns nothing, but uses its return value.
    register: Callable[[Callable[..., nn.Parameter]], RemovableHandle] = vars(torch_module)[
        "register_module_parameter_registration_hook"
    ]
    hook = register(to_fake)
    original_to = nn.Module.to
    setattr(nn.Module, "to", _apply_dtype_only)  # noqa: B010 - a fake parameter cannot be swapped for another, and is nowhere
    try:
        yield
    finally:
        hook.remove()
        setattr(nn.Module, "to", original_to)  # noqa: B010


def _apply_dtype_only(self: nn.Module, *args: object, **kwargs: object) -> nn.Module:
    """Apply only the dtype. The device has no effect."""
    dtype = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)), None)
    return self if dtype is None else self._apply(partial(_as_type, dtype=dtype))


def _as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _state_bytes(task: Task, fake: FakeTensorMode) -> int:
    """Memory of the optimizer state after a step, bytes."""
    with fake:
        for group in task.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        task.optimizer.step()
    states = (value for state in task.optimizer.state.values() for value in state.values())
    return sum(_bytes(value) for value in states if isinstance(value, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
