"""Skipped optimizer steps: their reasons, and the end of a training that has only skipped steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from batchcal.core.errors import UserCodeError
from batchcal.core.units import count_of
from batchcal.runtime.group import Skip

REASONS: Final[Mapping[Skip, str]] = {
    "no-weight": "no sample of the group has a weight",
    "no-gradient": "the loss of the group does not depend on a parameter that requires a gradient",
    "overflow": "a float16 gradient overflowed; the scaler tries a lower scale",
}
_FIXES: Final[Mapping[Skip, str]] = {
    "no-weight": "let weight_of, or the rows that the collate function leaves, count the samples that have a loss",
    "no-gradient": "compute the loss from model(...) itself, and leave one parameter with requires_grad=True",
    "overflow": "autocast=torch.bfloat16, a smaller loss, or more steps",
}


def nothing_trained(steps: int, skipped: int, reason: Skip | None, *, ended: bool) -> UserCodeError | None:
    """Return the error for a training whose optimizer never stepped. None: it stepped, or a scaler may still find its scale.

    Args:
        reason: the reason for the latest skipped step.
        ended: no step is left.
    """
    if reason is None or skipped == 0 or skipped < steps or (reason == "overflow" and not ended):
        return None
    return UserCodeError(
        f"nothing was trained: the optimizer skipped all of {count_of(steps, 'step')}",
        known=f"the latest because {REASONS[reason]}",
        try_=_FIXES[reason],
    )
