"""The cause of a loss that is NaN or infinite: the first operation whose inputs are finite and whose result is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from batchcal.core.units import count_of
from batchcal.workload.model.loss_error import LossIsNoNumber
from batchcal.workload.model.operators import OperatorWatch
from batchcal.workload.step import loss_of
from batchcal.workload.task import Task

_WEIGH = "weight_of=lambda batch: the number of elements in the mean; a micro-batch of weight 0 then adds no gradient"


def require_finite(task: Task, batch: object, samples: int, value: float) -> None:
    """Checks the loss `value` of `batch`, which is on the model's device. Runs the forward pass again to explain one that fails.

    In float16 a loss may overflow, and the scaler then skips the step. A mean over nothing is NaN at every scale.

    Raises:
        LossIsNoNumber: the loss is NaN or infinite.
    """
    if math.isfinite(value):
        return
    problem = f"the loss of a micro-batch of {count_of(samples, 'sample')} is {value:g}"
    cause = why_not_finite(task, batch)
    if task.autocast is torch.float16 and not (cause is not None and cause.of_nothing):
        return
    if cause is not None and cause.of_nothing:
        raise LossIsNoNumber(
            problem,
            known=f"{cause}; the gradients would make every parameter NaN, so the parameters were not updated",
            try_="return 0 from weight_of for such a batch" if task.weight_of is not None else _WEIGH,
        )
    raise LossIsNoNumber(
        problem,
        known=f"{'' if cause is None else f'{cause}; '}the gradients would make parameters NaN or infinite, "
        "so the parameters were not updated",
        try_="a lower learning rate, or gradient clipping (max_norm); or check the data for NaN and infinite values",
    )


class NotFiniteCause:
    """The operation that the loss is NaN or infinite from."""

    def __init__(self, operation: str, *, of_nothing: bool) -> None:
        self.operation = operation
        self.of_nothing = of_nothing
        """It divides 0 by 0: a mean over nothing."""

    def __str__(self) -> str:
        if self.of_nothing:
            return f"it is a mean over no elements: {self.operation} divides by 0"
        return f"the first NaN or infinite value is a result of {self.operation}"


def why_not_finite(task: Task, batch: object) -> NotFiniteCause | None:
    """The cause, from a forward pass without gradients. None: unknown, or the loss of this pass is finite."""
    watch = _FirstNotFinite()
    try:
        with torch.no_grad(), watch:
            loss_of(task, batch)
    except Exception:  # noqa: BLE001 - an explanation is not worth an error of its own
        return None
    return watch.cause


class _FirstNotFinite(OperatorWatch):
    def __init__(self) -> None:
        super().__init__()
        self.cause: NotFiniteCause | None = None

    def ran(self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
        if self.cause is None and not _all_finite(result):
            inputs = tree_leaves((args, kwargs))
            if all(_all_finite(value) for value in inputs):
                name = str(func).removeprefix("aten.").partition(".")[0]
                self.cause = NotFiniteCause(name, of_nothing=_divides_nothing(name, inputs))


def _all_finite(value: object) -> bool:
    """Empty memory may hold anything: the results of `empty` and the like count as finite where they are."""
    return all(
        bool(leaf.isfinite().all()) for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


def _divides_nothing(name: str, inputs: Sequence[object]) -> bool:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if any(value.numel() == 0 for value in tensors) or name.startswith("nll_loss"):
        return True
    return name.startswith("div") and len(inputs) > 1 and all(bool((torch.as_tensor(value) == 0).any()) for value in inputs[:2])
