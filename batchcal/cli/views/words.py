"""Texts and marks that the terminal and the page share."""

from __future__ import annotations

from typing import Final, Literal

from batchcal.calibration.schema import Calibration, Finding, LimitedBy, Measurement
from batchcal.core.units import format_bytes, format_seconds
from batchcal.guard.outcome import (
    Fits,
    Infrastructure,
    KilledFromOutside,
    Outcome,
    OutOfMemory,
    Peak,
    Suspect,
    Swapping,
    TimedOut,
    TooBig,
    UserCodeFailed,
    WorkerDied,
)

Tone = Literal["good", "bad", "odd"]
"""`good`: it ran. `bad`: it was too big. `odd`: it was inconclusive."""

WHO_SAID: Final = {
    "allocator": "its own allocator",
    "fence": "the fence (RLIMIT_DATA)",
    "watchdog": "the watchdog, in time",
    "kernel": "the kernel: the fence did not hold",
    "shm": "/dev/shm was full",
    "accelerator": "the accelerator was full",
    "budget": "it ran, but above the budget",
}


def tone(outcome: Outcome) -> Tone:
    """Return the tone of an outcome, which determines its colour."""
    return "good" if isinstance(outcome, Fits) else "bad" if isinstance(outcome, (*TooBig, Suspect)) else "odd"


def short(outcome: Outcome) -> str:
    """Return a few words for a table."""
    match outcome:
        case Fits():
            return "fits"
        case OutOfMemory(source="budget"):
            return "over budget"
        case OutOfMemory():
            return f"out of memory ({outcome.source})"
        case Swapping():
            return "swapped"
        case TimedOut():
            return f"timed out ({outcome.phase})"
        case UserCodeFailed():
            return "the task failed"
        case WorkerDied():
            return "a worker died"
        case KilledFromOutside():
            return f"killed (signal {outcome.signal})"
        case Suspect():
            return "died, suspect"
        case Infrastructure():
            return "batchcal failed"


def long(outcome: Outcome) -> str:
    """Return a sentence that explains an outcome."""
    match outcome:
        case Fits():
            return f"fits: {outcome.steps} steps of {format_seconds(outcome.step_s)}"
        case OutOfMemory():
            if outcome.source == "budget":
                return outcome.detail or WHO_SAID["budget"]
            said = f"out of memory, said {WHO_SAID[outcome.source]}"
            return said + (f": {first_line(outcome.detail)}" if outcome.detail else "")
        case Swapping():
            return f"{format_bytes(outcome.swapped_bytes)} were swapped out: as bad as out of memory"
        case TimedOut():
            return f"timed out in {outcome.phase} after {format_seconds(outcome.limit_s)}"
        case UserCodeFailed():
            return f"the task's own code failed: {outcome.error}"
        case WorkerDied() | Infrastructure():
            return f"{short(outcome)}: {first_line(outcome.detail)}"
        case KilledFromOutside():
            return f"killed from outside by signal {outcome.signal}"
        case Suspect():
            return f"died at {outcome.near_limit:.0%} of its limit: {first_line(outcome.detail)}"


def peak_of(outcome: Outcome) -> Peak | None:
    """Return the peak of an outcome. It is a lower bound if the batch was too big."""
    return outcome.peak if isinstance(outcome, (Fits, OutOfMemory, Swapping)) else None


def of_finding(calibration: Calibration, finding: Finding) -> tuple[Measurement, ...]:
    """Return the probes on the device and under the allocator of a finding, in order."""
    place = (finding.device, finding.allocator)
    return tuple(one for one in calibration.measurements if (one.device, one.allocator) == place)


def first_line(text: str) -> str:
    """Return the first line of a text that may be a traceback."""
    return text.strip().splitlines()[0] if text.strip() else ""


def count(number: float) -> str:
    """`60,000`, `1,530`, `39.4`."""
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"


LIMITS: Final[dict[LimitedBy, str]] = {
    "memory": "memory",
    "accelerator-memory": "the accelerator's memory",
    "shm": "/dev/shm, which the workers' batches go through",
    "dataset": "the data: there are no more samples",
    "max-batch": "--max-batch",
    "model": "the task itself, which refuses more",
    "speed": "speed: a larger one would be no faster",
    "time-limit": "the time limit",
    "max-probes": "--max-probes",
    "measuring-overhead": "what measuring itself takes",
}


def limit_sentence(calibration: Calibration, finding: Finding, mode: Literal["train", "eval"] = "train") -> str:
    """Return the reason why the capacity is not larger."""
    capacity = finding.train if mode == "train" or finding.eval is None else finding.eval
    why = LIMITS.get(capacity.limited_by, capacity.limited_by)
    if capacity.limited_by not in ("memory", "accelerator-memory"):
        return why + (f" ({capacity.undone})" if capacity.undone else "")
    larger = [one for one in of_finding(calibration, finding) if one.mode == mode and one.batch > capacity.batch]
    too_big = min((one.batch for one in larger if tone(one.outcome) == "bad"), default=None)
    ran = min((one.batch for one in larger if one.outcome.kind == "fits"), default=None)
    if finding.heap_growth > 1 and ran is not None and (too_big is None or ran < too_big):
        return f"{why}: {count(ran)} fits for a few steps, and the heap grows over many"
    return f"{why}: more is predicted not to fit" if too_big is None else f"{why}: {count(too_big)} was too much"
