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
        raise UsageError(f"{intra} threads within and {inter} between operators: each must be at least 1")
    if torch.get_num_threads() != intra:
        torch.set_num_threads(intra)
    there = torch.get_num_interop_threads()
    if there == inter:
        return
    try:
        torch.set_num_interop_threads(inter)
    except RuntimeError:
        raise UsageError(
            f"torch already uses {there} threads between operators, {inter} can no longer be set",
            known="it can be set once in a process, before any work runs side by side",
            try_="call batchcal.apply(plan) before anything else of torch",
        ) from None
