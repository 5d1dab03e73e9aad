"""Classification of evidence into an outcome. The first match wins. An unexplained end is never "too big"."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final

from batchcal.core.signals import signal_name
from batchcal.guard.channel.wire import JSON
from batchcal.guard.children.memory_errors import memory_error, out_of_descriptors
from batchcal.guard.children.report import COLLATE, STACKING, Raised
from batchcal.guard.ending import LOST, Ending
from batchcal.guard.outcome import (
    Infrastructure,
    KilledFromOutside,
    MemorySource,
    Outcome,
    OutOfMemory,
    Peak,
    Suspect,
    Swapping,
    TimedOut,
    UserCodeFailed,
    WorkerDied,
)

NEAR: Final = 0.85
"""Share of the allowed memory from which a death by signal counts as a suspected lack of memory."""
SWAP_TOLERANCE_BYTES: Final = 8 << 20
_MEMORY_SIGNALS: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
_OUTPUT_SHOWN: Final = 4000
_STACKS_SHOWN: Final = 12_000
"""Characters of output for a child that hung. The output before its stacks, which are dumped last, often shows the reason."""


def classify(ending: Ending, value_of: Callable[[JSON], Outcome]) -> Outcome:
    """Return the outcome of the child. `value_of` reads the function's return value (it may give another outcome than Fits)."""
    if ending.has_result:
        return swapped(ending) or value_of(ending.returned)
    if ending.killed_for == "stop":
        return Infrastructure(detail="batchcal stopped the process before it ended")
    if ending.killed_for == "memory":
        return OutOfMemory(source="watchdog", detail=ending.kill_reason, peak=_lower_bound(ending))
    if ending.killed_for == "deadline":
        detail = _tail(ending, ending.kill_reason, _STACKS_SHOWN)
        return TimedOut(phase=ending.phase, limit_s=ending.phase_limit_s, limit_name=ending.limit_name, detail=detail)
    if ending.oom_kills > 0:
        return OutOfMemory(source="kernel", detail="the kernel's OOM killer ended the process", peak=_lower_bound(ending))
    if ending.raised is not None:
        return swapped(ending) or _of_raised(ending, ending.raised)
    if ending.infrastructure:
        return Infrastructure(detail=ending.infrastructure)
    return _of_status(ending)


def _of_raised(ending: Ending, raised: Raised) -> Outcome:
    kind = memory_error(raised)
    near = ending.near_limit
    source: MemorySource
    match kind:
        case "accelerator":
            source = "accelerator"
        case "shm":
            source = "shm"
        case "host":
            source = "fence" if ending.armed else "allocator"
        case "worker":
            return WorkerDied(detail=_tail(ending, raised.headline))
        case "suspect" if near >= NEAR or ending.armed:
            return Suspect(detail=raised.headline, near_limit=near)
        case _:
            texts = raised.chain[0].told
            return UserCodeFailed(
                phase=raised.phase,
                error=raised.headline,
                traceback=raised.traceback if texts is None else texts[1],
                output=ending.output[-_OUTPUT_SHOWN:],
                hint=_hint(raised) if texts is None else texts[2],
            )
    return OutOfMemory(source=source, detail=raised.headline, peak=_lower_bound(ending))


def _hint(raised: Raised) -> str:
    """Suggestion for the user, if the error alone determines it."""
    if raised.chain[0].sample.startswith(STACKING):
        return COLLATE
    return "ulimit -n 65536, or use fewer --workers, or fewer tensors per sample" if out_of_descriptors(raised) else ""


def _of_status(ending: Ending) -> Outcome:
    status = ending.exit_status
    if status is None:
        return Infrastructure(detail="the child process ended, and its exit status is unknown")
    if status < 0:
        number = -status
        name = signal_name(number)
        if number in _MEMORY_SIGNALS:
            if ending.near_limit >= NEAR or (ending.armed and ending.phase == "measure"):
                return Suspect(detail=_tail(ending, f"the process crashed with {name}"), near_limit=ending.near_limit)
            return UserCodeFailed(
                phase=ending.phase,
                error=f"the process crashed with {name}",
                traceback=ending.output[-_OUTPUT_SHOWN:],
            )
        return KilledFromOutside(signal=number)
    if status == LOST:
        detail = _tail(ending, "the child process could not write its result")
        if ending.near_limit >= NEAR or (ending.armed and "MemoryError" in ending.output):
            return Suspect(detail=detail, near_limit=ending.near_limit)
        return Infrastructure(detail=detail)
    if "libgomp" in ending.output or "Thread creation failed" in ending.output:
        return Suspect(detail=_tail(ending, f"exit code {status}"), near_limit=ending.near_limit)
    return UserCodeFailed(
        phase=ending.phase,
        error=f"the process ended with exit code {status} and without a result (is there an os._exit() in the code?)",
        output=ending.output[-_OUTPUT_SHOWN:] or f"it printed nothing; it was in the phase {ending.phase!r}",
        hint="sys.exit() instead of os._exit(): the error then shows the line; or move the lines that end the program below "
        '`if __name__ == "__main__":`',
    )


def swapped(ending: Ending) -> Swapping | None:
    """Return the outcome if memory was swapped out while the child ran. None: it was not."""
    if ending.swapped_bytes > SWAP_TOLERANCE_BYTES:
        return Swapping(swapped_bytes=ending.swapped_bytes, peak=_lower_bound(ending))
    return None


def _lower_bound(ending: Ending) -> Peak:
    return Peak(demand_bytes=ending.peak_anonymous_bytes, anonymous_bytes=ending.peak_anonymous_bytes)


def _tail(ending: Ending, text: str, shown: int = 2000) -> str:
    output = ending.output.strip()[-shown:]
    return f"{text}\n{output}" if output else text
