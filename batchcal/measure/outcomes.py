"""Meaning of an outcome for a size: does it decide, is it still valid under another budget, and how is it described."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.schema import Measurement
from batchcal.core.units import MIB, format_bytes
from batchcal.guard.outcome import (
    Fits,
    Infrastructure,
    KilledFromOutside,
    Outcome,
    OutOfMemory,
    Suspect,
    Swapping,
    TimedOut,
    UserCodeFailed,
    WorkerDied,
)

OVER_BUDGET: Final = 0.1
OVER_BUDGET_LEAST: Final = 128 * MIB
"""Distance of the fence above the budget, if the limit has room for it. A run that ends just over the budget shows by how much,
and freed blocks that glibc keeps mapped (100 MiB and more beside a small CNN) do not stop a run within the budget."""
SAME: Final = 0.98
"""A size that did not fit in this share of the memory that is allowed now does not fit now."""


def decides(outcome: Outcome) -> bool:
    """True if an outcome moves a bound."""
    return isinstance(outcome, (Fits, OutOfMemory, Swapping))


def detail(outcome: Outcome) -> str | None:
    """Short description of an outcome. None: its name is enough."""
    match outcome:
        case Fits():
            return None
        case OutOfMemory():
            return f"{outcome.source}: {first_line(outcome.detail)}"
        case UserCodeFailed():
            return outcome.error
        case Suspect() | WorkerDied() | Infrastructure():
            return first_line(outcome.detail)
        case TimedOut():
            return f"in {outcome.phase} " + (
                f"when {outcome.limit_name} ended" if outcome.limit_name else f"after {outcome.limit_s:.0f} s"
            )
        case KilledFromOutside():
            return f"signal {outcome.signal}"
        case Swapping():
            return f"{format_bytes(outcome.swapped_bytes)} swapped"


def described(outcome: Outcome) -> str:
    """Name of an outcome with its short description."""
    return f"{outcome.kind}: {detail(outcome) or ''}".rstrip(": ")


def is_still_valid(old: Measurement, budget_bytes: int) -> bool:
    """True if an outcome would be the same under `budget_bytes`."""
    match old.outcome:
        case Fits():
            return True
        case OutOfMemory(source="budget", peak=peak) if peak is not None:
            return peak.bytes_on(old.device) > budget_bytes
        case OutOfMemory() | Swapping():
            return old.allowed_bytes is not None and old.allowed_bytes >= allowed_for(budget_bytes) * SAME
        case _:
            return False


def within(measured: Measurement, budget_bytes: int) -> Measurement:
    """Return `measured` with its outcome under `budget_bytes`: a run that held more does not fit."""
    outcome = measured.outcome
    if not isinstance(outcome, Fits) or outcome.peak.bytes_on(measured.device) <= budget_bytes:
        return measured
    peak, budget = format_bytes(outcome.peak.bytes_on(measured.device)), format_bytes(budget_bytes)
    text = f"it ran, but used {peak}, more than the budget of {budget}"
    return measured.model_copy(update={"outcome": OutOfMemory(source="budget", detail=text, peak=outcome.peak)})


def allowed_for(budget_bytes: int) -> int:
    """Memory at which the fence stops the child, bytes."""
    return budget_bytes + max(OVER_BUDGET_LEAST, int(budget_bytes * OVER_BUDGET))


def first_line(text: str) -> str:
    """First line of a text that may be empty."""
    return text.strip().splitlines()[0] if text.strip() else ""
