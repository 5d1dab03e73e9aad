"""The workers that the user requested, and the memory that an epoch adds to the measurement of a few steps."""

from __future__ import annotations

from typing import Final

from batchcal.calibration.schema import Budget
from batchcal.core.errors import NothingFits, Partial, UserCodeError
from batchcal.core.units import count_of, format_bytes
from batchcal.measure.children.probe import Probe
from batchcal.measure.workers.trial import WorkersReport, WorkersRequest

LEAST_BUDGET_FACTOR: Final = 1.05
"""Multiple of the memory of a tiny step. A budget below it fits no batch."""


def try_requested(probe: Probe, request: WorkersRequest, workers: int) -> WorkersReport:
    """Run the trial of the requested `workers`.

    Raises:
        UserCodeError: they hang, fail or return other samples.
        Partial: the time limit ended.
        NothingFits: they need more memory than there is.
    """
    report = probe.try_workers(request)
    match report.ended_by:
        case "time-limit":
            raise Partial(report.workers.why_none, try_=f"a longer --time-limit, or --workers 0 instead of {workers}")
        case "memory":
            raise NothingFits(report.workers.why_none, try_=f"fewer --workers than {workers}, or a larger container")
        case "":
            pass
    if report.workers.why_none:
        raise UserCodeError(
            f"{count_of(workers, 'worker')} cannot be used: {report.workers.why_none}",
            known=f"--workers {workers} was tried with shuffled samples of the training data",
            try_=f"--workers 0; or {report.check.fix}" if report.check.fix else "--workers 0",
        )
    return report


def check_growth(budget: Budget, each_bytes: int, workers: int, *, base_bytes: int) -> None:
    """Check that `workers` processes have room to grow by `each_bytes` each, beside the memory of a tiny step.

    Raises:
        NothingFits: there is less room.
    """
    room = max(0, int(budget.budget_bytes - base_bytes * LEAST_BUDGET_FACTOR))
    if workers * each_bytes <= room:
        return
    raise NothingFits(
        f"{count_of(workers, 'worker')} do not fit: by the end of an epoch they grow by {format_bytes(workers * each_bytes)}, "
        f"but the training leaves only {format_bytes(room)} free",
        known=f"each worker grows by up to {format_bytes(each_bytes)}, because of caches of the dataset and copies of its lists",
        try_=f"--workers {room // each_bytes}, a larger container, a bounded cache, or arrays instead of lists",
    )


def reserve(budget: Budget, grown_bytes: int, *, base_bytes: int) -> tuple[Budget, str]:
    """Return `budget` with `grown_bytes` left free, if a small batch still fits beside them, and a phrase for the notes.

    Args:
        base_bytes: memory of a tiny step.
    """
    grown = f"{format_bytes(grown_bytes)} by the end of an epoch"
    if budget.budget_bytes - grown_bytes < base_bytes * LEAST_BUDGET_FACTOR:
        return budget, (
            f"{grown}, which does not fit beside the training; bound the cache, keep data in arrays instead of lists, or "
            "use fewer workers"
        )
    changes = {"reserved_bytes": grown_bytes, "budget_bytes": budget.budget_bytes - grown_bytes}
    return budget.model_copy(update=changes), f"{grown}; the budget reserves this memory"
