"""Hooks of parameters that take gradients away: an optimizer step in the backward pass."""

from __future__ import annotations

from batchcal.workload.model.parameters import trained_parameters
from batchcal.workload.task import Task


def takes_gradients(task: Task) -> bool:
    """True if a parameter has a hook that runs when its gradient is complete, and may clear it."""
    return any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in trained_parameters(task))
