"""The norm of all gradients of a step, sparse ones included, and clipping to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scales the gradients down to the Euclidean norm `max_norm` where theirs is larger; returns the norm before.

    A sparse gradient (of `Embedding(sparse=True)`) may hold several values for one row. These are added up first: the norm is
    that of the dense gradient.
    """
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    total = torch.nn.utils.get_total_norm(gradients)
    norm = float(total)
    if norm > max_norm:
        # The factor of torch's clip_grads_with_norm_.
        factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
    return norm
