"""Normalization of optimizer steps, for any sizes of micro-batches and of effective batches.

Within a step, the result does not depend on the split: the mean loss of each micro-batch counts by its weight (its samples, or
the count of the task's `weight_of`), and the gradient is that of the mean over all of them. Between steps of different effective
batches, one of three rules adapts the learning rate (reference: the effective batch for which the learning rate was chosen):

- `none`: unchanged. The default of batchcal, since the plan keeps the effective batch.
- `linear`: x effective / reference. Goyal et al. 2017 (arXiv:1706.02677), for SGD: k times the samples, k times the step. Fails
  for large factors, and needs a warm-up.
- `sqrt`: x sqrt(effective / reference). Keeps the variance of a step of SGD (Krizhevsky 2014, arXiv:1404.5997; Hoffer et al.
  2017, arXiv:1705.08741), and is the rule for Adam and RMSprop (Malladi et al. 2022, arXiv:2205.10330).

In a custom loop:

    normalizer = EffectiveBatchSizeNormalizer(reference=128, rule="sqrt")
    for batches in groups:
        total = sum(len(batch) for batch in batches)
        for batch in batches:
            (normalizer.loss_scale(len(batch), total) * mean_loss(model, batch)).backward()
        with normalizer.applied(optimizer, total):
            optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import assert_never, get_args

from torch import Tensor
from torch.optim import Optimizer

from batchcal.core.errors import UsageError
from batchcal.core.progress import Field
from batchcal.values.settings import LearningRateRule


@dataclass(frozen=True)
class EffectiveBatchSizeNormalizer:
    """Scale of the loss of a micro-batch within its step, and of the learning rate between steps of different sizes.

    Raises:
        UsageError: `reference` is not positive and finite, or `rule` is unknown.
    """

    reference: float
    """Effective batch for which the learning rate was chosen, in the unit of the weights: samples or tokens."""
    rule: LearningRateRule = "none"

    def __post_init__(self) -> None:
        if not 0 < self.reference < math.inf:
            raise UsageError(f"reference = {self.reference} is not an effective batch", try_="reference=128")
        if self.rule not in get_args(LearningRateRule):
            raise UsageError(f"there is no rule {self.rule!r}", known=f"valid values: {', '.join(get_args(LearningRateRule))}")

    def loss_scale(self, weight: float, total_weight: float) -> float:
        """Return the factor of the mean loss of a micro-batch before `backward`: its share of the step's weight. With it, the
        gradients of the step sum to that of the undivided batch. The shares of a step sum to 1.

        batchcal's own loop multiplies by the weight and divides by the total at the end, when it is known, with the same result.

        Raises:
            UsageError: `weight` is negative or exceeds the total, or the total is not positive and finite.
        """
        if not 0 <= weight <= total_weight or not 0 < total_weight < math.inf:
            raise UsageError(
                f"a weight of {weight:g} is not part of a total weight of {total_weight:g}",
                known="a weight is at least 0, and the total is the sum of the weights of all micro-batches of the step",
            )
        return weight / total_weight

    def factor(self, effective_batch: float) -> float:
        """Return the factor of the learning rate in a step of `effective_batch`, in the unit of `reference`.

        Raises:
            UsageError: `effective_batch` is not positive and finite.
        """
        if not 0 < effective_batch < math.inf:
            raise UsageError(f"an effective batch must be positive and finite, not {effective_batch:g}")
        match self.rule:
            case "none":
                return 1.0
            case "linear":
                return effective_batch / self.reference
            case "sqrt":
                return math.sqrt(effective_batch / self.reference)
            case never:
                assert_never(never)

    @contextmanager
    def applied(self, optimizer: Optimizer, effective_batch: float) -> Iterator[float]:
        """Multiply every learning rate of `optimizer` while entered, and restore it exactly afterwards. Yields the factor.

        Schedulers get their own rates if they step outside of the block. Decoupled weight decay (AdamW) is scaled, too, since it
        is multiplied by the learning rate.

        Raises:
            UsageError: a learning rate was changed inside the block. It is restored to its value before the block.
        """
        factor = self.factor(effective_batch)
        # A tensor as learning rate, as compiled and captured optimizers need it, stays the same tensor.
        before = [(group, rate.clone() if isinstance(rate := group["lr"], Tensor) else rate) for group in optimizer.param_groups]
        during: list[Tensor | float] = []
        for group, rate in before:
            if isinstance(rate, Tensor):
                group["lr"].copy_(rate * factor)
                during.append(rate * factor)
            else:
                group["lr"] = rate * factor
                during.append(group["lr"])
        try:
            yield factor
            changed = any(bool(group["lr"] != expected) for (group, _), expected in zip(before, during, strict=True))
        finally:
            for group, rate in before:
                if isinstance(rate, Tensor) and isinstance(group["lr"], Tensor):
                    group["lr"].copy_(rate)
                else:
                    group["lr"] = rate
        if changed:
            raise UsageError(
                "the learning rate was changed while it was scaled for one step",
                known="it is unknown whether the new value is already scaled",
                try_="call scheduler.step() after the block",
            )

    def log(self, effective_batch: float) -> dict[str, Field]:
        """Return the rule and factor in a step of `effective_batch`, for the log."""
        return {"lr_rule": self.rule, "lr_reference_batch": self.reference, "lr_factor": self.factor(effective_batch)}

    def description(self) -> str:
        """Return the rule in words, for the report."""
        match self.rule:
            case "none":
                return "the learning rate does not depend on the effective batch"
            case "linear":
                return f"learning rate x effective batch / {self.reference:g}"
            case "sqrt":
                return f"learning rate x sqrt(effective batch / {self.reference:g})"
            case never:
                assert_never(never)
