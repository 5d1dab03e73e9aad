"""Probes of a calibration for its file: the list with bounded texts, and a summary by setup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from batchcal.calibration.records.setup_runs import Quantiles, SetupRuns
from batchcal.calibration.schema import Measurement
from batchcal.core.canonical import MAX_BYTES, dumps_line
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

EVIDENCE_BYTES: Final = MAX_BYTES // 4
"""Limit of all tracebacks, stacks and outputs together. Each can have 64 KiB, and a file at most 4 MiB."""
CUT: Final = "(removed: this file keeps the tracebacks and output of the last probes only)"


def summed_up(measurements: Iterable[Measurement], num_workers: int) -> tuple[SetupRuns, ...]:
    """Summary of each setup, in the order of the first runs.

    Args:
        num_workers: number of DataLoader workers in these probes.
    """
    runs: dict[tuple[str, str, str, int], list[Measurement]] = {}
    for measured in measurements:
        if measured.phase == "refusal":
            continue  # a trial of two steps: its peak may not have settled
        runs.setdefault((measured.device, measured.allocator, measured.mode, measured.batch), []).append(measured)
    return tuple(_of_setup(of_setup, num_workers) for of_setup in runs.values())


def _of_setup(runs: Sequence[Measurement], num_workers: int) -> SetupRuns:
    first = runs[0]
    fits = [measured.outcome for measured in runs if isinstance(measured.outcome, Fits)]
    return SetupRuns(
        device=first.device,
        allocator=first.allocator,
        mode=first.mode,
        batch=first.batch,
        num_workers=num_workers,
        count=len(runs),
        outcomes=dict(Counter(measured.outcome.kind for measured in runs)),
        peak_bytes=Quantiles.of([fit.peak.bytes_on(first.device) for fit in fits]) if fits else None,
        step_s=Quantiles.of([fit.step_s for fit in fits]) if fits else None,
    )


def with_bounded_evidence(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """`measurements` within `EVIDENCE_BYTES`: the oldest lose their tracebacks and output first."""
    room = EVIDENCE_BYTES
    bounded: list[Measurement] = []
    for measured in reversed(measurements):
        without = _without_evidence(measured.outcome)
        size = 0 if without is None else len(dumps_line(measured.outcome.model_dump(mode="json")))
        room -= size
        bounded.append(measured if without is None or room >= 0 else measured.model_copy(update={"outcome": without}))
    return tuple(reversed(bounded))


def _without_evidence(outcome: Outcome) -> Outcome | None:
    """`outcome` with only the first line of its text. None: there is no more text."""
    match outcome:
        case UserCodeFailed():
            return outcome.model_copy(update={"traceback": CUT, "output": ""})
        case TimedOut() | WorkerDied() | Suspect() | Infrastructure() | OutOfMemory():
            first, _, rest = outcome.detail.partition("\n")
            return outcome.model_copy(update={"detail": f"{first}\n{CUT}"}) if rest else None
        case Fits() | Swapping() | KilledFromOutside():
            return None
        case never:
            assert_never(never)
