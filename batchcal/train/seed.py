"""Seeds of random numbers."""

from __future__ import annotations

import hashlib
import random
import sys

import torch


def seed_everything(seed: int, epoch: int | None = None) -> None:
    """Seed Python, torch (every device) and, if the process uses it, numpy.

    With `epoch`, the seed is equal for the same seed and epoch, and differs between epochs: an epoch then does not depend on
    earlier ones, and a resumed run repeats it.
    """
    digest = hashlib.sha256(f"{seed}/{'' if epoch is None else epoch}".encode()).digest()
    number = int.from_bytes(digest[:4], "big")
    random.seed(number)
    torch.manual_seed(number)
    numpy = sys.modules.get("numpy")
    # Do not import numpy here: if no code has loaded it, its random state needs no seed.
    seed_numpy = getattr(getattr(numpy, "random", None), "seed", None)
    if callable(seed_numpy):
        seed_numpy(number)
