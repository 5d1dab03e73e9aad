"""Errors of the first runs of a command."""

from __future__ import annotations

from typing import Final

from batchcal.core.errors import BatchcalError, NothingFits, UsageError, UserCodeError
from batchcal.core.units import format_bytes
from batchcal.guard.commands.supervisor import NOT_ALLOWED, NOT_FOUND
from batchcal.guard.outcome import OutOfMemory, TimedOut, UserCodeFailed
from batchcal.measure.commands.command_run import CommandRun
from batchcal.measure.commands.reports import Reports
from batchcal.measure.outcomes import described

IGNORED: Final = " per optimizer step instead of "
"""Part of the error of a run that did not train with the values of its command line."""
_NOT_STARTED: Final = "a program on PATH that can be executed"


def error_of(run: CommandRun, size: int | None, budget_bytes: int) -> BatchcalError:
    """Return the error of a first run that did not fit. `size` is its batch size; None: the command's own."""
    outcome = run.outcome
    if isinstance(outcome, UserCodeFailed):
        if IGNORED in outcome.error:
            return UsageError(
                outcome.error,
                known="the values of the command line must be those of the training, or its effective batch would be wrong",
                try_="put {batch_size} where the command reads the samples per forward pass of one process, and "
                "{accumulation_steps} where it reads its accumulation, or accumulate 1 batch",
            )
        if run.ending.exit_status in (0, NOT_ALLOWED, NOT_FOUND):
            reason = _NOT_STARTED if run.ending.exit_status else _why_not_observed(run.reports)
            return UsageError(outcome.error, known=outcome.evidence[-1000:].strip(), try_=reason)
        return UserCodeError(outcome.error, known=outcome.evidence, try_=outcome.hint)
    if isinstance(outcome, OutOfMemory):
        return NothingFits(
            f"nothing fits: the command{'' if size is None else f' with {{batch_size}} = {size}'} needs more than "
            f"the budget of {format_bytes(budget_bytes)}",
            known=described(outcome),
            try_="a larger container, a smaller model, or a smaller --margin",
        )
    if isinstance(outcome, TimedOut):
        return UsageError(f"the command made too few optimizer steps ({described(outcome)})", known=outcome.detail[-1000:])
    return UserCodeError(f"the command could not be measured: {described(outcome)}", known=run.ending.output[-1000:])


def _why_not_observed(reports: Reports) -> str:
    if reports.torch:
        return "a training that makes at least 3 optimizer steps, for example with more epochs or more data"
    return (
        "a command whose Python imports torch, without -I, -E or -S, and that passes its environment on "
        "(sudo, env -i and containers do not)"
    )
