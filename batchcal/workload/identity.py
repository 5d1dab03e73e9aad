"""Which task this is, told from its sources and arguments without importing them (and so without torch)."""

from __future__ import annotations

from batchcal.core.values import Record
from batchcal.workload.reference import Scalar


class TaskIdentity(Record):
    """Which task, told without loading torch."""

    spec: str
    """`module:factory` or `file.py:factory`, as given."""
    arguments: dict[str, Scalar]
    sources: dict[str, str]
    """sha256 of each source file that defines the task, by path relative to the project (or module name)."""
    digest: str
    """sha256 over the above."""
