"""Outcome of one run of a command, from its end and the reports of its processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from batchcal.core.units import count_of, format_bytes
from batchcal.guard.classify import classify, swapped
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, OutOfMemory, Peak, UserCodeFailed
from batchcal.measure.commands.reports import LEAST_STEPS, RankReport, Reports

_OUTPUT_SHOWN: Final = 4000


def outcome_of(ending: Ending, reports: Reports, *, budget_bytes: int, declared_batch: int) -> Outcome:
    """Return the outcome of a run.

    Args:
        declared_batch: samples per optimizer step by the command line, of all ranks.
    """
    is_enough = reports.is_complete or (ending.exit_status == 0 and reports.steps >= LEAST_STEPS)
    if is_enough and ending.killed_for in (None, "stop"):
        return swapped(ending) or _measured(ending, reports, budget_bytes, declared_batch)
    if ending.exit_status == 0 and ending.killed_for is None:
        return UserCodeFailed(phase=ending.phase, error=_too_few_steps(reports), output=ending.output[-_OUTPUT_SHOWN:])
    raised = reports.raised
    outcome = classify(replace(ending, raised=ending.raised or raised), lambda value: Infrastructure(detail=""))
    if not isinstance(outcome, UserCodeFailed):
        return outcome
    if raised is not None:
        return outcome.model_copy(update={"traceback": ending.output[-_OUTPUT_SHOWN:], "output": "", "hint": ""})
    error = f"the command ended with exit code {ending.exit_status}"
    return outcome.model_copy(update={"error": error, "output": ending.output[-_OUTPUT_SHOWN:], "hint": ""})


def _measured(ending: Ending, reports: Reports, budget_bytes: int, declared_batch: int) -> Outcome:
    peak = Peak(demand_bytes=ending.peak_anonymous_bytes, anonymous_bytes=ending.peak_anonymous_bytes)
    if peak.demand_bytes > budget_bytes:
        text = f"it ran, but used {format_bytes(peak.demand_bytes)}, more than the budget of {format_bytes(budget_bytes)}"
        return OutOfMemory(source="budget", detail=text, peak=peak)
    seconds = reports.seconds_per_step
    if not seconds:
        return UserCodeFailed(phase="measure", error=_too_few_steps(reports))
    rows = reports.rows_per_step or declared_batch
    return Fits(peak=peak, steps=reports.steps, step_s=seconds, samples_per_s=rows / seconds)


def _too_few_steps(reports: Reports) -> str:
    if not reports.torch and not reports.by_rank:
        return "the command ended, and none of its Python processes reported that it imported torch"
    least: RankReport | None = min(reports.by_rank.values(), key=lambda report: len(report.steps), default=None)
    steps, backwards = (0, 0) if least is None else (len(least.steps), least.backwards)
    passes = "backward pass" if backwards == 1 else "backward passes"
    text = f"the command ended after {count_of(steps, 'optimizer step')} and {backwards} {passes}"
    return f"{text}; at least {LEAST_STEPS} steps are needed"
