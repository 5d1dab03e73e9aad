"""What travels to a child that traces a shape, as JSON."""

from __future__ import annotations

from typing import Final

from batchcal.core.values import Frozen
from batchcal.workload.reference import TaskReference

BATCHES: Final = (2, 8, 32, 128)


class TraceArguments(Frozen):
    reference: TaskReference
    seed: int
    batches: tuple[int, ...]
    """Micro-batches whose step is traced, where the data has as many samples. None: only what the model holds is told."""
    limit_s: float
    """No further size is traced after so many seconds."""
