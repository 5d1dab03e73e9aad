"""Converts a child's answer to an outcome against the budget, or to an error for the user."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Final

from pydantic import ValidationError

from batchcal.core.errors import BatchcalError, GuardError, NothingFits, Partial, UsageError, UserCodeError
from batchcal.core.units import count_of, format_bytes
from batchcal.core.values import Frozen
from batchcal.guard.channel.wire import JSON
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.outcome import Fits, Infrastructure, Outcome, OutOfMemory, Peak, Phase, TimedOut, UserCodeFailed
from batchcal.measure.children.child_memory import ChildMemory
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
"""Activity by phase of an examination."""
RAN_OUT: Final[dict[Phase, str]] = {
    "start": "while it was loaded",
    "load": "while it was loaded",
    "read": "while its samples were read",
}
"""Time at which memory ran out, by phase. Later phases run batches."""
OF_NO_SIZE: Final = (NameError, AttributeError, ImportError, SyntaxError, OSError, BatchcalError)
"""Errors that do not depend on the batch size."""


@dataclass(frozen=True)
class Within:
    """Limits of a child."""

    device: str
    budget_bytes: int
    """Budget of the device."""
    host_budget_bytes: int
    group_base_bytes: int | None
    """Memory that the child shared with its zygote, if the growth of the memory group counts, too. None: the child's own
    measurement is complete."""


def probed(value: JSON, ending: Ending, within: Within, batch: int) -> Outcome:
    """Outcome of one batch size."""
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
    """Outcome of a complete plan."""
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
    """Times of a plan, from a usable answer."""
    answer = RehearsalAnswer.model_validate(value)
    return PlanTimes(
        foreign_share=answer.foreign_share,
        wait_share=min(1.0, answer.wait_s / max(answer.sample_s, 1e-12)),
        eval_samples_per_s=tuple(1 / max(seconds, 1e-12) for seconds in answer.eval_sample_s),
        last_group_error=answer.last_group_error,
    )


def evaluating(value: JSON, within: Within, *, heard: bool) -> bool:
    """True if a rehearsal that did not fit exceeded its budget in the evaluation: it reported an evaluation and did not end, or
    its training stayed within the budget."""
    try:
        answer = RehearsalAnswer.model_validate(value)
    except ValidationError:
        return heard
    held = answer.held
    most = held.step_peak_bytes + held.workers_bytes if within.device == "cpu" else held.accelerator_bytes or 0
    # Memory that only the group or the host measured, or the accelerator's own cache, may belong to training or evaluation.
    return heard and answer.train_peak_bytes <= within.budget_bytes < most and held.accelerator_retries == 0


def notes(returned: JSON) -> tuple[str, ...]:
    """Notes of a child for the reader of the calibration."""
    told = returned.get("notes") if isinstance(returned, dict) else None
    return tuple(note for note in told if isinstance(note, str)) if isinstance(told, list) else ()


def _unusable(error: ValidationError) -> Infrastructure:
    return Infrastructure(detail=f"the child's answer is not usable: {error.error_count()} fields are wrong")


def _peak(held: ChildMemory, ending: Ending, within: Within) -> Peak:
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


def _over(held: ChildMemory, peak: Peak, within: Within) -> OutOfMemory | None:
    """Outcome of a run that completed but does not fit. None: it fits."""
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
"""Share of a budget above which the memory of Python and torch is the cause."""


class Kept(Frozen):
    """Memory that remains after samples were read, as a child reported it before it read further samples."""

    kept_bytes_per_sample: float
    train_samples: int

    def __str__(self) -> str:
        return (
            f"the dataset keeps {format_bytes(self.kept_bytes_per_sample)} of each sample that it has read, "
            f"{format_bytes(self.kept_bytes_per_sample * self.train_samples)} after {count_of(self.train_samples, 'sample')}"
        )


def failure(ending: Ending, budget_bytes: int, kept: Kept | None = None, *, torch_bytes: int = 0) -> BatchcalError:
    """Return the reason why the examination failed, as an error for the user.

    Args:
        kept: memory that read samples leave behind. None: the child measured none.
        torch_bytes: memory of Python and torch without the task. 0: unknown.
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
