"""Which rehearsal belongs to a plan, and what failed ones say about others."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.memory_model import UNBOUNDED
from batchcal.calibration.rehearsal import Rehearsal
from batchcal.calibration.schema import Calibration, Finding
from batchcal.guard.outcome import Infrastructure, KilledFromOutside, Outcome, OutOfMemory, Suspect, TimedOut, TooBig
from batchcal.plan.plan import Plan
from batchcal.values.setup import Setup

BACK_OFF: Final = 0.9
"""Of a micro-batch whose rehearsal ran out of memory: the next plan's is no larger."""
EVAL_BACK_OFF: Final = 0.5
"""Of an evaluation's batch, which decides nothing but its own speed, and that is nearly flat."""
BELOW: Final = 0.98
"""Of what would have fitted had the peak been a multiple of the micro-batch, where a rehearsal ran and held too much."""


def setup_of(plan: Plan) -> Setup:
    """What of `plan` a run depends on."""
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
    )


def tells(outcome: Outcome) -> bool:
    """Whether an outcome says something about the plan. A kill from outside, a failure of ours or a deadline do not."""
    return not isinstance(outcome, KilledFromOutside | Infrastructure | TimedOut)


def rehearsal_of(calibration: Calibration, plan: Plan) -> Rehearsal | None:
    """The last run of this very plan; None: it was not rehearsed, as those for several ranks never are."""
    if plan.world_size > 1:
        return None
    wanted = setup_of(plan)
    return next((one for one in reversed(calibration.rehearsals) if one.settings == wanted), None)


def most_rehearsed(calibration: Calibration, finding: Finding) -> int | None:
    """The largest micro-batch that rehearsals which ran out of memory leave, under any policy of the device.

    It is below the smallest that failed. 0: not one sample. None: no rehearsal failed.
    """
    left = [
        min(int(largest * _share_left(calibration, rehearsal)), largest - 1)
        for rehearsal in _out_of_memory(calibration, finding)
        for largest in (max(rehearsal.settings.micro_batches),)
    ]
    return min(left, default=None)


def least_ruled_out(calibration: Calibration, finding: Finding) -> int | None:
    """The smallest micro-batch whose rehearsal ran out of memory; None: no rehearsal did."""
    return min((max(rehearsal.settings.micro_batches) for rehearsal in _out_of_memory(calibration, finding)), default=None)


def share_left(calibration: Calibration, finding: Finding) -> float:
    """Of what the memory model predicts: what failed rehearsals leave of its sizes. 1: no rehearsal failed."""
    most, budget = most_rehearsed(calibration, finding), calibration.budget(finding.device)
    if most is None or budget is None:
        return 1.0
    expected = finding.train_memory.largest_within(finding.usable_bytes(budget.budget_bytes), ceiling=UNBOUNDED)
    return min(1.0, most / max(1, expected))


def _out_of_memory(calibration: Calibration, finding: Finding) -> list[Rehearsal]:
    """Rehearsals on the device of `finding` whose training ran out of memory, workers' apart: without them it may fit."""
    return [
        rehearsal
        for rehearsal in calibration.rehearsals
        if rehearsal.settings.device == finding.device
        and isinstance(rehearsal.outcome, (*TooBig, Suspect))
        and not rehearsal.evaluating
        and not rehearsal.settings.num_workers
    ]


def most_evaluated(calibration: Calibration, finding: Finding) -> int | None:
    """The largest evaluation batch that rehearsals which failed while they evaluated leave; None: none did."""
    failed = [
        one.settings.eval_batch
        for one in calibration.rehearsals
        if (one.settings.device, one.settings.allocator) == (finding.device, finding.allocator) and one.evaluating
    ]
    return max(1, int(min(failed) * EVAL_BACK_OFF)) if failed else None


def _share_left(calibration: Calibration, rehearsal: Rehearsal) -> float:
    outcome, budget = rehearsal.outcome, calibration.budget(rehearsal.settings.device)
    if not isinstance(outcome, OutOfMemory) or outcome.source != "budget" or outcome.peak is None or budget is None:
        return BACK_OFF
    return BELOW * min(1.0, budget.budget_bytes / max(1, outcome.peak.held_on(rehearsal.settings.device)))


def workers_failed(calibration: Calibration, finding: Finding) -> bool:
    """Whether a plan with workers did not go well while it trained: then there are to be none, before all else is smaller."""
    return any(
        one.settings.num_workers and not one.fits and not one.evaluating and tells(one.outcome)
        for one in calibration.rehearsals
        if one.settings.device == finding.device
    )
