"""What a child's answer means: an outcome against the budget, or an error for the user."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Final

from pydantic import ValidationError

from batchcal.core.errors import BatchcalError, GuardError, NothingFits, Partial, UsageError, UserCodeError
from batchcal.core.units import count_of, format_bytes
from batchcal.core.values import Frozen
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, OutOfMemory, Peak, Phase, TimedOut, UserCodeFailed
from batchcal.guard.wire import JSON
from batchcal.measure.children.held import Held
from batchcal.measure.children.probe import PlanTimes, RehearsalRequest, SizeRefused
from batchcal.measure.children.probe_job import ProbeAnswer
from batchcal.measure.rehearsal.job import RehearsalAnswer

DOING: Final[dict[Phase, str]] = {
    "start": "a process was started",
    "load": "the task was imported and built",
    "read": "samples were read",
    "warm-up": "the task ran its first small batches",
    "measure": "the task was examined",
    "finish": "the task was examined",
}
"""By phase of an examination."""
RAN_OUT: Final[dict[Phase, str]] = {
    "start": "while it was loaded",
    "load": "while it was loaded",
    "read": "while its samples were read",
}
"""By phase; later ones run batches."""
OF_NO_SIZE: Final = (NameError, AttributeError, ImportError, SyntaxError, OSError, BatchcalError)
"""Errors that another batch size does not change."""


@dataclass(frozen=True)
class Within:
    """What a child had to stay within."""

    device: str
    budget_bytes: int
    """Of the device."""
    host_budget_bytes: int
    group_base_bytes: int | None
    """What the child shared with its zygote, where the group's growth counts besides; None: the child saw all there was."""


def probed(value: JSON, ending: Ending, within: Within, batch: int) -> Outcome:
    """Of one batch size."""
    try:
        answer = ProbeAnswer.model_validate(value)
    except ValidationError as error:
        return _unusable(error)
    peak = _peak(answer.held, ending, within)
    if (over := _over(answer.held, peak, within)) is not None:
        return over
    step_s = max(median(answer.step_s[1:] or answer.step_s), 1e-9)
    return Fits(peak=peak, steps=len(answer.step_s), step_s=step_s, samples_per_s=batch / step_s)


def rehearsed(value: JSON, ending: Ending, within: Within, request: RehearsalRequest) -> Outcome:
    """Of a whole plan."""
    try:
        answer = RehearsalAnswer.model_validate(value)
    except ValidationError as error:
        return _unusable(error)
    peak = _peak(answer.held, ending, within)
    if (over := _over(answer.held, peak, within)) is not None:
        return over
    samples = sum(request.plan.micro_batches)
    step_s = max(samples * answer.sample_s + answer.update_s, 1e-9)
    return Fits(peak=peak, steps=answer.groups, step_s=step_s, samples_per_s=samples / step_s)


def rehearsal_times(value: JSON) -> PlanTimes:
    """Of an answer that is usable."""
    answer = RehearsalAnswer.model_validate(value)
    return PlanTimes(
        foreign_share=answer.foreign_share,
        wait_share=min(1.0, answer.wait_s / max(answer.sample_s, 1e-12)),
        eval_samples_per_s=tuple(1 / max(seconds, 1e-12) for seconds in answer.eval_sample_s),
        last_group_error=answer.last_group_error,
    )


def evaluating(value: JSON, within: Within, *, heard: bool) -> bool:
    """Whether a rehearsal that did not fit was evaluating when it needed too much: it said so and never ended, or its training
    had stayed within the budget."""
    try:
        answer = RehearsalAnswer.model_validate(value)
    except ValidationError:
        return heard
    held = answer.held
    most = held.step_peak_bytes + held.workers_bytes if within.device == "cpu" else held.accelerator_bytes or 0
    # What only the group or the host saw, or the accelerator's own cache, is not told apart by when it was.
    return heard and answer.train_peak_bytes <= within.budget_bytes < most and held.accelerator_retries == 0


def notes(returned: JSON) -> tuple[str, ...]:
    """What a child wants the reader to know."""
    told = returned.get("notes") if isinstance(returned, dict) else None
    return tuple(note for note in told if isinstance(note, str)) if isinstance(told, list) else ()


def _unusable(error: ValidationError) -> Infrastructure:
    return Infrastructure(detail=f"the child's answer is not usable: {error.error_count()} fields are wrong")


def _peak(held: Held, ending: Ending, within: Within) -> Peak:
    host = max(held.step_peak_bytes, held.load_peak_bytes) + held.workers_bytes
    if within.group_base_bytes is not None:
        host = max(host, ending.group_growth_bytes + within.group_base_bytes)
    return Peak(
        demand_bytes=host,
        anonymous_bytes=max(0, held.step_peak_bytes - held.shared_bytes),
        shared_bytes=held.shared_bytes,
        file_bytes=held.file_bytes,
        begin_bytes=held.begin_bytes,
        accelerator_bytes=held.accelerator_bytes,
        accelerator_allocated_bytes=held.accelerator_allocated_bytes,
    )


def _over(held: Held, peak: Peak, within: Within) -> OutOfMemory | None:
    """It ran to its end, and yet it does not fit. None: it does."""
    if held.accelerator_retries > 0:
        detail = f"the allocator had to flush its cache {held.accelerator_retries} times to go on"
        return OutOfMemory(source="accelerator", detail=detail, peak=peak)
    demand = peak.held_on(within.device)
    if demand > within.budget_bytes:
        over = f"it ran, but held {format_bytes(demand)} of {format_bytes(within.budget_bytes)}"
        return OutOfMemory(source="budget", detail=over, peak=peak)
    if within.device != "cpu" and peak.demand_bytes > within.host_budget_bytes:
        over = f"it ran, but held {format_bytes(peak.demand_bytes)} of the host's {format_bytes(within.host_budget_bytes)}"
        return OutOfMemory(source="budget", detail=over, peak=peak)
    return None


MOSTLY: Final = 0.8
"""Of a budget: what Python and torch hold is then the cause."""


class Kept(Frozen):
    """What reading samples leaves in memory, as a child told it before it read on."""

    kept_bytes_per_sample: float
    train_samples: int

    def __str__(self) -> str:
        return (
            f"the dataset keeps {format_bytes(self.kept_bytes_per_sample)} of each sample that it has read, "
            f"{format_bytes(self.kept_bytes_per_sample * self.train_samples)} after {count_of(self.train_samples, 'sample')}"
        )


def failure(ending: Ending, budget_bytes: int, kept: Kept | None = None, *, torch_bytes: int = 0) -> BatchcalError:
    """Why the examination failed, as an error for the user.

    Args:
        kept: None: nothing that the child measured.
        torch_bytes: what Python and torch hold without the task. 0: unknown.
    """
    outcome = classify(ending, lambda value: Infrastructure(detail="no answer"))
    known = f"the budget is {format_bytes(budget_bytes)}"
    match outcome:
        case UserCodeFailed():
            link = None if ending.raised is None else ending.raised.chain[0]
            kind = UsageError if link is not None and link.is_a(UsageError) else UserCodeError
            of_no_size = link is not None and any(map(link.is_a, OF_NO_SIZE))
            if kind is UserCodeError and ending.phase == "warm-up" and not of_no_size:
                kind = SizeRefused
            return kind(outcome.error, known=outcome.evidence, try_=outcome.hint)
        case OutOfMemory():
            held = format_bytes(max(ending.peak_anonymous_bytes, ending.group_growth_bytes))
            where = RAN_OUT.get(ending.phase, "on its first small batch")
            stopped = "stopped by the watchdog" if outcome.source == "watchdog" else "an allocation failed"
            detail = f"; {outcome.detail}" if outcome.detail else ""
            if kept is not None:
                detail += f"; {kept}"
            if torch_bytes > budget_bytes * MOSTLY:
                detail += f"; Python and torch alone hold {format_bytes(torch_bytes)}"
            return NothingFits(
                f"nothing fits: the task ran out of memory {where} ({stopped} at {held})",
                known=f"{known}{detail}",
                try_="a larger container or --memory-limit, or "
                + (
                    "a bound for what the dataset keeps (a cache, a list that grows)"
                    if kept is not None
                    else "smaller samples, or a dataset that keeps fewer of them"
                    if ending.phase == "read"
                    else "a smaller model, or smaller samples"
                ),
            )
        case TimedOut() if outcome.limit_name:
            doing = DOING[outcome.phase]
            return Partial(
                f"{outcome.limit_name} ended while {doing}",
                known=outcome.detail,
                try_="a longer --time-limit"
                + ("" if outcome.phase == "start" else "; if that does not help, the traceback shows the line that hangs")
                + ('; lines that train belong below `if __name__ == "__main__":`' if outcome.phase == "load" else "")
                + ("; a sample that takes long can be fetched by hand: task().train_data[0]" if outcome.phase == "read" else ""),
            )
        case TimedOut():
            return UserCodeError(
                f"the task hangs: still in {outcome.phase} after {outcome.limit_s:.0f} s",
                known=outcome.detail,
                try_='the lines that train below `if __name__ == "__main__":`, or the factory by hand'
                if outcome.phase == "load"
                else "one sample by hand: task().train_data[0]"
                if outcome.phase == "read"
                else "the factory by hand, and one step of its training",
            )
        case _:
            return GuardError(
                "the task could not be examined",
                known=f"{outcome.kind}: {ending.output[-500:] or ending.infrastructure or ending.exit_status}",
            )
