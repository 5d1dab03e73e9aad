"""Probe: measures one batch size once, in a child. The interface, and the fake that ships with the product."""

from __future__ import annotations

from typing import Protocol

from batchcal.calibration.schema import Isolation, Mode
from batchcal.core.values import Frozen
from batchcal.guard.outcome import Outcome


class ProbeRequest(Frozen):
    """What one child is to run."""

    batch: int
    mode: Mode
    device: str
    allocator: str
    samples: int
    """Steps at most; ends earlier once the peak has stood still for two steps, at least three in all."""
    allowed_bytes: int
    """Demand at which the fence is armed (the whole process tree)."""
    budget_bytes: int
    """A run that ends above this is out of memory with source `budget`."""
    predicted_bytes: int | None


class ProbeReport(Frozen):
    outcome: Outcome
    isolation: Isolation
    wall_s: float


class Probe(Protocol):
    """Measures. Never raises for what the machine or the user's code did; raises GuardError for what we could not do."""

    def measure(self, request: ProbeRequest) -> ProbeReport: ...
