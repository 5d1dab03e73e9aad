"""Texts and marks that the terminal and the page share."""

from __future__ import annotations

from typing import Final, Literal

from batchcal.calibration.records.memory_model import UNBOUNDED
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

MEMORY_SOURCES: Final = {
    "allocator": "reported by the allocator",
    "fence": "stopped by the fence, RLIMIT_DATA",
    "watchdog": "stopped by the watchdog",
    "kernel": "killed by the kernel, because the fence did not stop it",
    "shm": "/dev/shm was full",
    "accelerator": "the accelerator was full",
    "budget": "ran, but with a peak above the budget",
}
"""Description of each source of the outcome out-of-memory."""


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
            return "died, maybe out of memory"
        case Infrastructure():
            return "batchcal failed"


def long(outcome: Outcome) -> str:
    """Return a sentence that explains an outcome."""
    match outcome:
        case Fits():
            return f"fits: {outcome.steps} steps of {format_seconds(outcome.step_s)}"
        case OutOfMemory():
            if outcome.source == "budget":
                return outcome.detail or MEMORY_SOURCES["budget"]
            text = f"out of memory ({MEMORY_SOURCES[outcome.source]})"
            return text + (f": {first_line(outcome.detail)}" if outcome.detail else "")
        case Swapping():
            return f"{format_bytes(outcome.swapped_bytes)} were swapped out, which counts as out of memory"
        case TimedOut():
            return f"timed out in {outcome.phase} after {format_seconds(outcome.limit_s)}"
        case UserCodeFailed():
            return f"the task's code failed: {outcome.error}"
        case WorkerDied() | Infrastructure():
            return f"{short(outcome)}: {first_line(outcome.detail)}"
        case KilledFromOutside():
            return f"killed by signal {outcome.signal}, which batchcal did not send"
        case Suspect():
            return f"died at {outcome.near_limit:.0%} of its memory limit: {first_line(outcome.detail)}"


def peak_of(outcome: Outcome) -> Peak | None:
    """Return the peak of an outcome. It is a lower bound if the batch was too big."""
    return outcome.peak if isinstance(outcome, (Fits, OutOfMemory, Swapping)) else None


def probes_of(calibration: Calibration, finding: Finding) -> tuple[Measurement, ...]:
    """Return the probes on the device and under the allocator of a finding, in order."""
    target = (finding.device, finding.allocator)
    return tuple(probe for probe in calibration.measurements if (probe.device, probe.allocator) == target)


def first_line(text: str) -> str:
    """Return the first line of a text that may be a traceback."""
    return text.strip().splitlines()[0] if text.strip() else ""


def count(number: float) -> str:
    """`60,000`, `1,530`, `39.4`."""
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"


WORTH_NAMING: Final = 1.2
"""A predicted size below this multiple of the verified one is not named: the search would not have tried it (`WORTH_A_PROBE`)."""
LIMITS: Final[dict[LimitedBy, str]] = {
    "memory": "memory",
    "accelerator-memory": "the accelerator's memory",
    "shm": "/dev/shm, through which workers send batches",
    "dataset": "the number of samples",
    "max-batch": "--max-batch",
    "model": "the task, which does not accept a larger batch",
    "speed": "speed: larger batches are of no use for it",
    "time-limit": "the time limit",
    "max-probes": "--max-probes",
    "measuring-overhead": "the memory that the measurement itself needs",
}


def predicted_capacity(calibration: Calibration, finding: Finding) -> int | None:
    """Return the largest micro-batch that is predicted to fit, if time or probes ended the search below it. None: the capacity
    itself is as large, or something else limits it."""
    budget, options, facts = calibration.budget(finding.device), calibration.options, calibration.facts
    if budget is None or finding.train.limited_by not in ("time-limit", "max-probes"):
        return None
    bounds = (options.max_batch, None if facts is None else facts.train_samples, UNBOUNDED)
    ceiling = min(bound for bound in bounds if bound is not None)
    predicted = finding.train_memory.largest_within(finding.usable_bytes(budget.budget_bytes), ceiling=ceiling)
    return predicted if predicted > finding.train.batch * WORTH_NAMING else None


def limit_sentence(calibration: Calibration, finding: Finding, mode: Literal["train", "eval"] = "train") -> str:
    """Return the reason why the capacity is not larger."""
    capacity = finding.train if mode == "train" or finding.eval is None else finding.eval
    limit = LIMITS.get(capacity.limited_by, capacity.limited_by)
    if capacity.limited_by not in ("memory", "accelerator-memory"):
        predicted = predicted_capacity(calibration, finding) if mode == "train" else None
        about = "" if predicted is None else f"; about {count(predicted)} predicted"
        return limit + (f" ({capacity.undone})" if capacity.undone else "") + about
    larger = [probe for probe in probes_of(calibration, finding) if probe.mode == mode and probe.batch > capacity.batch]
    too_big = min((probe.batch for probe in larger if tone(probe.outcome) == "bad"), default=None)
    fitting = min((probe.batch for probe in larger if probe.outcome.kind == "fits"), default=None)
    if finding.heap_growth > 1 and fitting is not None and (too_big is None or fitting < too_big):
        return f"{limit}: {count(fitting)} fits for a few steps, but the heap grows over many steps"
    return f"{limit}: a larger batch is predicted not to fit" if too_big is None else f"{limit}: {count(too_big)} does not fit"
