"""Skipped optimizer steps: their reasons, and the end of a training that has only skipped steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from batchcal.core.errors import UserCodeError
from batchcal.core.units import count_of
from batchcal.runtime.group import Skip

REASONS: Final[Mapping[Skip, str]] = {
    "no-weight": "every sample of the group has weight 0",
    "no-gradient": "the loss of the group does not depend on a parameter that requires a gradient",
    "overflow": "a float16 gradient overflowed; the scaler tries a lower scale",
}
_FIXES: Final[Mapping[Skip, str]] = {
    "no-weight": "make weight_of count the samples that have a loss, and the collate function keep at least one such sample",
    "no-gradient": "compute the loss from the output of model(...), and set requires_grad=True for at least one parameter",
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
        f"nothing was trained: the optimizer skipped every step ({count_of(steps, 'step')})",
        known=f"reason for the latest skipped step: {REASONS[reason]}",
        try_=_FIXES[reason],
    )
