"""Layers that compute statistics over the batch: dividing a batch changes what they train."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_normalizations(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of `model`, those that are frozen included."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
