"""Conversion of a child's answer about workers into a checked promise and the limits of plans with workers."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from batchcal.calibration.records.promises import PromiseCheck
from batchcal.calibration.records.workers import LoaderWorkers
from batchcal.core.units import count_of
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, OutOfMemory, Peak, TimedOut
from batchcal.measure.outcomes import described
from batchcal.measure.workers.job import WorkersAnswer
from batchcal.measure.workers.trial import WorkersReport

SEED_LATER: Final = (
    "use the global generators of torch, random or numpy.random, which are seeded in each worker; or create the generator in the "
    "first __getitem__ of each worker, seeded with torch.initial_seed()"
)
NO_POOL: Final = (
    "create the samples without pools, threads or locks in the dataset: DataLoader workers are a pool of processes already"
)
OPEN_LATER: Final = "store only the path in the dataset, and open it in the first __getitem__ of each process"


def reported(ending: Ending, workers: int) -> WorkersReport:
    """Return the report of a child that tried `workers` workers, however it ended."""
    outcome: Outcome = classify(ending, lambda value: Fits(peak=Peak(demand_bytes=0), steps=0, step_s=0.0, samples_per_s=0.0))
    if not isinstance(outcome, Fits):
        return _ended(outcome, workers)
    try:
        return report_of(WorkersAnswer.model_validate(ending.returned))
    except ValidationError as error:
        invalid = count_of(error.error_count(), "invalid field")
        return _ended(Infrastructure(detail=f"the measuring process returned an invalid answer ({invalid})"), workers)


def report_of(answer: WorkersAnswer) -> WorkersReport:
    """Return the report of a child that ended by itself."""
    check = _check(answer)
    workers = LoaderWorkers(
        start=answer.start,
        why_start="" if answer.start is None else f"{answer.holding}, which forked workers would share",
        why_none=check.cause if check.result == "violated" else "",
        private_bytes=answer.private_bytes,
        growth_bytes=max(answer.copied_bytes, answer.kept_bytes),
        samples=answer.samples,
    )
    return WorkersReport(check=check, workers=workers)


def _check(answer: WorkersAnswer) -> PromiseCheck:
    holding = f"; {answer.holding}" if answer.holding else ""
    if answer.does_not_pickle:
        return _violated(
            f"{answer.holding}: forked workers would share it, and the dataset cannot be sent to workers that are not forked "
            f"({answer.does_not_pickle})",
            fix=OPEN_LATER,
        )
    if answer.wrong and answer.failed in {"", "raise"}:  # some mixed-up samples also raise: the others show the cause
        cause = (
            f"workers return other samples' records: {answer.holding or 'the dataset shares an open file'}"
            if answer.swapped
            else "workers return other samples than the training process"
        )
        return _violated(f"{cause} ({answer.example})", fix=OPEN_LATER, mismatch=answer.wrong / max(1, answer.compared))
    match answer.failed:
        case "hang":
            return _violated(f"the dataset hangs with workers{holding}", fix=NO_POOL)
        case "die":
            return _violated(f"a worker exits while it reads the dataset: {answer.error}{holding}", fix=OPEN_LATER)
        case "raise":
            fix = NO_POOL if "daemonic" in answer.error else OPEN_LATER
            return _violated(f"the dataset fails in workers: {answer.error}{holding}", fix=fix)
        case "":
            pass
    if answer.repeats:
        return _violated(
            f"all workers would draw the same random numbers: {answer.repeats}, and each worker has a copy of it", fix=SEED_LATER
        )
    if answer.not_compared or not answer.compared:
        return _not_checked(answer.not_compared or "no sample was read in time")
    return PromiseCheck(promise="same-samples-in-workers", result="ok")


def _ended(outcome: Outcome, workers: int) -> WorkersReport:
    """Return the report of a child that was stopped."""
    if isinstance(outcome, TimedOut) and outcome.limit_name:
        why = f"{outcome.limit_name} ended while workers were tried"
        return WorkersReport(check=_not_checked(why), workers=LoaderWorkers(why_none=why), ended_by="time-limit")
    if isinstance(outcome, TimedOut) and outcome.phase == "measure":
        check = _violated("the dataset hangs with workers", fix=NO_POOL)
        return WorkersReport(check=check, workers=LoaderWorkers(why_none=check.cause))
    if isinstance(outcome, OutOfMemory):
        why = f"the task with {count_of(workers, 'DataLoader worker')} needs more memory than is available"
        return WorkersReport(check=_not_checked(why), workers=LoaderWorkers(why_none=why), ended_by="memory")
    why = f"workers could not be tried: {described(outcome)}"
    return WorkersReport(check=_not_checked(why), workers=LoaderWorkers(why_none=why))


def _violated(cause: str, *, fix: str, mismatch: float | None = None) -> PromiseCheck:
    return PromiseCheck(promise="same-samples-in-workers", result="violated", mismatch=mismatch, cause=cause, fix=fix)


def _not_checked(cause: str) -> PromiseCheck:
    return PromiseCheck(promise="same-samples-in-workers", result="not-checked", cause=cause)
