"""What an optimizer step means, whatever the sizes of its parts and of the whole.

Within a step nothing depends on how it was split: each micro-batch's mean loss counts by its weight (its samples, or what the
task's `weight_of` counts), and the gradient is that of the mean over all of them. Between steps of different effective batches
the learning rate decides, by one of three rules (Reference: the effective batch that the learning rate was chosen for):

- `none`: it stays. What batchcal does unless told otherwise, since the plan keeps the effective batch.
- `linear`: x effective / reference. Goyal et al. 2017 (arXiv:1706.02677), for SGD: k times the samples, k times the step. Breaks
  for large factors, and wants a warm-up.
- `sqrt`: x sqrt(effective / reference). Keeps the variance of a step of SGD (Krizhevsky 2014, arXiv:1404.5997; Hoffer et al.
  2017, arXiv:1705.08741), and is the rule for Adam and RMSprop (Malladi et al. 2022, arXiv:2205.10330).

A loop of one's own:

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
    """Scale of a micro-batch's loss within its step, and of the learning rate between steps of different sizes.

    Raises:
        UsageError: `reference` is not positive, or there is no such rule.
    """

    reference: float
    """The effective batch that the learning rate was chosen for, in the unit of the weights: samples, or tokens."""
    rule: LearningRateRule = "none"

    def __post_init__(self) -> None:
        if not 0 < self.reference < math.inf:
            raise UsageError(f"reference = {self.reference} is no effective batch", try_="reference=128")
        if self.rule not in get_args(LearningRateRule):
            raise UsageError(f"there is no rule {self.rule!r}", known=f"valid values: {', '.join(get_args(LearningRateRule))}")

    def loss_scale(self, weight: float, total_weight: float) -> float:
        """What to multiply the mean loss of a micro-batch with before `backward`, so that the gradients of the step sum to that
        of the undivided batch: its share of the step's weight. The shares of a step sum to 1.

        batchcal's own loop multiplies with the weight and divides by the total at the end, when it is known: the same.

        Raises:
            UsageError: no share: negative, more than the whole, or of nothing.
        """
        if not 0 <= weight <= total_weight or not 0 < total_weight < math.inf:
            raise UsageError(
                f"a weight of {weight:g} is no part of {total_weight:g}",
                known="a micro-batch weighs 0 or more, and its step as much as its micro-batches together",
            )
        return weight / total_weight

    def factor(self, effective_batch: float) -> float:
        """What the learning rate is multiplied with in a step of `effective_batch`, in the unit of `reference`.

        Raises:
            UsageError: `effective_batch` is not positive.
        """
        if not 0 < effective_batch < math.inf:
            raise UsageError(f"an effective batch of {effective_batch:g} makes no step")
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
        """While entered, every learning rate of `optimizer` is multiplied; afterwards it is what it was, to the bit. Yields the
        factor.

        Schedulers see their own rates, as long as they step outside of it. Decoupled weight decay (AdamW) is scaled along, since
        it is multiplied with the learning rate.

        Raises:
            UsageError: a learning rate was changed inside; it was put back to what it had been before.
        """
        factor = self.factor(effective_batch)
        # A rate that is a tensor, as compiled and captured optimizers want it, stays the tensor it is.
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
                known="what was set is not known to be scaled or not",
                try_="scheduler.step() after the block",
            )

    def log(self, effective_batch: float) -> dict[str, Field]:
        """What is in force in a step of `effective_batch`, for the log."""
        return {"lr_rule": self.rule, "lr_reference_batch": self.reference, "lr_factor": self.factor(effective_batch)}

    def said(self) -> str:
        """The rule in words, for the report."""
        match self.rule:
            case "none":
                return "the learning rate does not depend on the effective batch"
            case "linear":
                return f"learning rate x effective batch / {self.reference:g}"
            case "sqrt":
                return f"learning rate x sqrt(effective batch / {self.reference:g})"
            case never:
                assert_never(never)
