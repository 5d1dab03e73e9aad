"""The error of a loss that cannot be trained with. Importing this loads no torch: parents of trials recognise it."""

from __future__ import annotations

from batchcal.core.errors import UserCodeError


class LossIsNoNumber(UserCodeError):
    """The loss of a batch is infinite, or NaN."""
