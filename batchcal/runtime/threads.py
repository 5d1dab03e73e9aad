"""Thread counts of torch, set once and early."""

from __future__ import annotations

import torch

from batchcal.core.errors import UsageError


def apply_threads(intra: int, inter: int) -> None:
    """Use `intra` threads within an operator and `inter` for parallel operators, in this process.

    Safe to call again with the same numbers. torch accepts the second number once, before the first operator runs in parallel.
    Workers of a DataLoader always use one thread.

    Raises:
        UsageError: a number is below 1, `inter` was already set, or torch already uses its own number.
    """
    if intra < 1 or inter < 1:
        raise UsageError(f"{intra} threads within an operator and {inter} between operators: each must be at least 1")
    if torch.get_num_threads() != intra:
        torch.set_num_threads(intra)
    current = torch.get_num_interop_threads()
    if current == inter:
        return
    try:
        torch.set_num_interop_threads(inter)
    except RuntimeError:
        raise UsageError(
            f"torch already uses {current} threads between operators, so {inter} can no longer be set",
            known="torch accepts this number once in a process, before operators run in parallel",
            try_="call batchcal.apply(plan) before any other use of torch",
        ) from None
