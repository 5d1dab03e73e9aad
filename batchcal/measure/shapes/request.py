"""What travels to a child that traces a shape, as JSON."""

from __future__ import annotations

from batchcal.core.values import Frozen
from batchcal.workload.reference import TaskReference


class TraceArguments(Frozen):
    reference: TaskReference
    seed: int
    limit_s: float
    """No further size is traced after so many seconds."""
