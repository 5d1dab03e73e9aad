"""Texts that the terminal, the page and the live view of a run share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from textwrap import shorten
from typing import Final, assert_never

from batchcal.cli.views.charts.plot import number
from batchcal.cli.views.words import count, first_line
from batchcal.core.units import count_of, format_bytes, format_seconds
from batchcal.train.report.run import (
    Happening,
    LoggedCheckpoint,
    LoggedEpoch,
    LoggedNotice,
    LoggedRecovery,
    LoggedResize,
    LoggedStart,
    Run,
    Stopped,
)

_MOST_WHY: Final = 100
"""Most characters of a reason. The log has all of it."""


@dataclass(frozen=True)
class ShownRun:
    """A run to show, and the time at which it is shown."""

    run: Run
    at: datetime

    @property
    def state(self) -> str:
        """`ended`, `stopped early`, `stopped`, `not ended, last update 2 h 5 min ago`."""
        if self.run.ended is not None:
            return self.run.status
        return f"not ended, last update {format_seconds(max((self.at - self.run.written_at).total_seconds(), 0))} ago"

    @property
    def succeeded(self) -> bool:
        """True if the run ended as planned, with finite losses."""
        return self.run.status == "ended" and not self.run.steps.not_finite("loss")


def about(run: Run) -> tuple[str, str]:
    """Return two lines: device, allocator and start; progress."""
    setup = [part for part in (run.latest.device, run.latest.allocator and f"allocator {run.latest.allocator}") if part]
    if run.started.time is not None:
        setup.append(f"started {run.started.time.strftime('%Y-%m-%d %H:%M UTC')}")
    epochs = f"{len(run.epochs)} of {run.latest.epochs} epochs" if run.latest.epochs else count_of(len(run.epochs), "epoch")
    return ", ".join(setup), f"{epochs}, {_many(len(run.steps), 'step')} in {format_seconds(run.wall_s)}"


def summary(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield the results: a name, the answer, and a remark."""
    yield from _loss(run)
    if run.samples_per_s is not None:
        yield "speed", f"{count(run.samples_per_s)} samples/s", ""
    yield from _memory(run)
    yield from _batch(run)
    if run.recoveries:
        lost_s = sum(recovery.lost_s or 0.0 for recovery in run.recoveries)
        yield "out of memory", _many(len(run.recoveries), "time"), f"recovered, {format_seconds(lost_s)} lost"
    if skipped := sum(epoch.skipped_steps or 0 for epoch in run.epochs):
        yield "skipped", _many(skipped, "step"), "changed no parameter"
    if isinstance(run.ended, Stopped):
        yield "stopped", run.ended.error, first_line(run.ended.why)
    elif run.ended is not None and run.ended.stop_reason:
        yield "stopped", "early", run.ended.stop_reason
    if run.resumes:
        repeated = f"{_many(run.repeated_steps, 'step')} repeated" if run.repeated_steps else "no step was repeated"
        yield "resumed", count_of(len(run.resumes), "time"), repeated


def _loss(run: Run) -> Iterator[tuple[str, str, str]]:
    last = run.epochs[-1] if run.epochs else None
    evaluated = [f"{name} {number(value)}" for name, value in (last.evaluation if last else {}).items()]
    if last is not None and last.loss is not None:
        yield "loss", number(last.loss), f"evaluation: {', '.join(evaluated)}" if evaluated else ""
    not_finite = run.steps.not_finite("loss")
    if not_finite:
        yield "bad loss", _many(len(not_finite), "step"), f"NaN or infinite, first at step {count(not_finite[0])}"


def _memory(run: Run) -> Iterator[tuple[str, str, str]]:
    peak, budget = run.peak_bytes, run.latest.budget_bytes
    if peak is not None:
        remark = ""
        if budget:
            share = f"{peak / budget:.0%} of" if peak <= budget else f"{format_bytes(peak - budget)} above"
            remark = f"{share} the budget of {format_bytes(budget)}"
        yield "peak", format_bytes(peak), remark
    error = run.prediction
    if error is not None:
        steps = _many(error.steps, "step")
        exceeded = f"exceeded in {count(error.exceeded)} of {steps}, by at most {error.worst_under:.1%}"
        exceeded = exceeded if error.exceeded else f"never exceeded in {steps}"
        yield "prediction", f"{error.median:.1%} error", f"median; at most {error.p95:.1%} in 95% of the steps; {exceeded}"


def _batch(run: Run) -> Iterator[tuple[str, str, str]]:
    plan = run.latest
    if plan.micro_batch is None:
        return
    size = count(plan.micro_batch)
    if plan.accumulation_steps and plan.effective_batch and plan.accumulation_steps > 1:
        size = f"{plan.accumulation_steps} x {size} for {count(plan.effective_batch)}"
    last = run.changes[-1].now if run.changes else None
    yield "micro-batch", size, "" if last is None else f"{count(last)} at the end, after {_many(len(run.changes), 'change')}"


def position_of(happening: Happening) -> str:
    """Return the position of an event, as far as it is logged: `epoch 3, step 25`."""
    if isinstance(happening, LoggedRecovery | LoggedResize) and happening.epoch is not None and happening.step is not None:
        return f"epoch {happening.epoch + 1}, step {count(happening.step)}"
    return f"step {count(happening.global_step)}" if not isinstance(happening, LoggedStart) else ""


def description(happening: Happening) -> str:
    """Return a sentence about an event."""
    match happening:
        case LoggedRecovery():
            work = f"{happening.phase} of {count_of(happening.samples, 'sample')}" if happening.samples else happening.phase
            safe = "" if happening.safe is None else f", at most {count(happening.safe)} from now on"
            lost = "" if happening.lost_s is None else f", {format_seconds(happening.lost_s)} lost"
            return f"{work} ran out of memory: {happening.action or 'recovered'}{safe}{lost}".strip() + _because(happening.why)
        case LoggedResize():
            was, now = ("?" if size is None else count(size) for size in (happening.was, happening.now))
            return f"micro-batch {was} to {now}{_because(happening.why)}"
        case LoggedEpoch():
            loss = [] if happening.loss is None else [f"loss {number(happening.loss)}"]
            evaluated = [f"{name} {number(value)}" for name, value in happening.evaluation.items()]
            return f"epoch {happening.epoch + 1} ended: {', '.join([*loss, *evaluated])}"
        case LoggedCheckpoint():
            return f"checkpoint saved: {happening.path}"
        case LoggedNotice():
            return happening.text
        case Stopped():
            return f"stopped by {happening.error}{_because(happening.why)}"
        case LoggedStart():
            return f"resumed in epoch {happening.epoch + 1}, at sample {count(happening.resumed_at_sample)}"
        case never:
            assert_never(never)


def _because(why: str) -> str:
    return f" ({shorten(first_line(why), _MOST_WHY, placeholder=' …')})" if why.strip() else ""


def _many(number_of: int, noun: str) -> str:
    """`1 step`, `100,000 steps`."""
    return f"{count(number_of)} {noun}{'' if number_of == 1 else 's'}"
