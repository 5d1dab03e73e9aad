"""The rehearsal of a plan, and the limits that failed rehearsals set for other plans."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.records.memory_model import UNBOUNDED
from batchcal.calibration.records.rehearsal import Rehearsal
from batchcal.calibration.schema import Calibration, Finding
from batchcal.guard.outcome import Infrastructure, KilledFromOutside, Outcome, OutOfMemory, Suspect, TimedOut, TooBig
from batchcal.plan.plan import Plan
from batchcal.values.setup import Setup

BACK_OFF: Final = 0.9
"""Fraction of a micro-batch whose rehearsal ran out of memory. The micro-batch of the next plan is not larger."""
EVAL_BACK_OFF: Final = 0.5
"""The same for an evaluation's batch, which affects only the speed of the evaluation, and that is nearly constant."""
BELOW: Final = 0.98
"""Fraction of the size that fits if the peak is proportional to the micro-batch, after a rehearsal ran and held too much."""


def setup_of(plan: Plan) -> Setup:
    """Return the settings of `plan` that a run depends on."""
    return Setup(
        device=plan.device,
        allocator=plan.allocator,
        micro_batches=plan.micro_batches,
        eval_batch=plan.eval_batch,
        num_workers=plan.num_workers,
        prefetch_factor=plan.prefetch_factor,
        multiprocessing_context=plan.multiprocessing_context,
        intra_op_threads=plan.intra_op_threads,
        interop_threads=plan.interop_threads,
        world_size=plan.world_size,
    )


def is_conclusive(outcome: Outcome) -> bool:
    """True if an outcome is a result of the plan. A kill from outside, a failure of batchcal itself and a deadline are not."""
    return not isinstance(outcome, KilledFromOutside | Infrastructure | TimedOut)


def rehearsal_of(calibration: Calibration, plan: Plan) -> Rehearsal | None:
    """Return the last run of exactly this plan. None: it was not rehearsed; plans of a task for several ranks never are."""
    if plan.world_size > 1 and calibration.command is None:
        return None
    settings = setup_of(plan)
    return next((rehearsal for rehearsal in reversed(calibration.rehearsals) if rehearsal.settings == settings), None)


def most_rehearsed(calibration: Calibration, finding: Finding) -> int | None:
    """Return the largest micro-batch that is left after rehearsals that ran out of memory, under any policy of the device.

    It is below the smallest one that failed. 0: not even one sample. None: no rehearsal failed.
    """
    limits = [
        min(int(largest * _remaining_share(calibration, rehearsal)), largest - 1)
        for rehearsal in _out_of_memory(calibration, finding)
        for largest in (max(rehearsal.settings.micro_batches),)
    ]
    return min(limits, default=None)


def least_ruled_out(calibration: Calibration, finding: Finding) -> int | None:
    """Return the smallest micro-batch whose rehearsal ran out of memory. None: no rehearsal did."""
    return min((max(rehearsal.settings.micro_batches) for rehearsal in _out_of_memory(calibration, finding)), default=None)


def remaining_share(calibration: Calibration, finding: Finding) -> float:
    """Fraction of the memory model's sizes that failed rehearsals leave. 1: no rehearsal failed."""
    most, budget = most_rehearsed(calibration, finding), calibration.budget(finding.device)
    if most is None or budget is None:
        return 1.0
    expected = finding.train_memory.largest_within(finding.usable_bytes(budget.budget_bytes), ceiling=UNBOUNDED)
    return min(1.0, most / max(1, expected))


def _out_of_memory(calibration: Calibration, finding: Finding) -> list[Rehearsal]:
    """Rehearsals on the device of `finding` whose training ran out of memory without workers. Others may fit without them."""
    return [
        rehearsal
        for rehearsal in calibration.rehearsals
        if rehearsal.settings.device == finding.device
        and isinstance(rehearsal.outcome, (*TooBig, Suspect))
        and not rehearsal.evaluating
        and not rehearsal.settings.num_workers
    ]


def most_evaluated(calibration: Calibration, finding: Finding) -> int | None:
    """Return the largest evaluation batch that is left after rehearsals that failed in evaluation. None: none failed there."""
    failed = [
        rehearsal.settings.eval_batch
        for rehearsal in calibration.rehearsals
        if (rehearsal.settings.device, rehearsal.settings.allocator) == (finding.device, finding.allocator)
        and rehearsal.evaluating
    ]
    return max(1, int(min(failed) * EVAL_BACK_OFF)) if failed else None


def _remaining_share(calibration: Calibration, rehearsal: Rehearsal) -> float:
    outcome, budget = rehearsal.outcome, calibration.budget(rehearsal.settings.device)
    if not isinstance(outcome, OutOfMemory) or outcome.source != "budget" or outcome.peak is None or budget is None:
        return BACK_OFF
    return BELOW * min(1.0, budget.budget_bytes / max(1, outcome.peak.bytes_on(rehearsal.settings.device)))


def workers_failed(calibration: Calibration, finding: Finding) -> bool:
    """True if a plan with workers failed in training. The next plan has no workers then, before any size becomes smaller."""
    return any(
        rehearsal.settings.num_workers and not rehearsal.fits and not rehearsal.evaluating and is_conclusive(rehearsal.outcome)
        for rehearsal in calibration.rehearsals
        if rehearsal.settings.device == finding.device
    )
