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

ACTIVITY: Final[dict[Phase, str]] = {
    "start": "a process was started",
    "load": "the task was imported and built",
    "read": "samples were read",
    "warm-up": "the task ran its first small batches",
    "measure": "the task was examined",
    "finish": "the task was examined",
}
"""Activity by phase of an examination."""
OUT_OF_MEMORY_TIME: Final[dict[Phase, str]] = {
    "start": "while it was loaded",
    "load": "while it was loaded",
    "read": "while its samples were read",
}
"""Time at which memory ran out, by phase. Later phases run batches."""
UNFINISHED: Final[dict[Phase, str]] = {
    "start": "did not start",
    "load": "did not finish loading",
    "read": "did not finish reading samples",
    "warm-up": "did not finish its first small batches",
    "measure": "did not finish its examination",
    "finish": "did not finish its examination",
}
"""Activity that did not end within its own limit, by phase."""
SIZE_INDEPENDENT: Final = (NameError, AttributeError, ImportError, SyntaxError, OSError, BatchcalError)
"""Errors that do not depend on the batch size."""


@dataclass(frozen=True)
class MemoryLimits:
    """Limits of a child."""

    device: str
    budget_bytes: int
    """Budget of the device."""
    host_budget_bytes: int
    group_base_bytes: int | None
    """Memory that the child shared with its zygote, if the growth of the memory group counts, too. None: the child's own
    measurement is complete."""


def probe_outcome(value: JSON, ending: Ending, limits: MemoryLimits, batch: int) -> Outcome:
    """Outcome of one batch size."""
    try:
        answer = ProbeAnswer.model_validate(value)
    except ValidationError as error:
        return _unusable(error)
    peak = _peak(answer.held, ending, limits)
    if (over := _over(answer.held, peak, limits)) is not None:
        return over
    step_s = max(median(answer.step_s[1:] or answer.step_s), 1e-9)
    return Fits(peak=peak, steps=len(answer.step_s), step_s=step_s, samples_per_s=batch / step_s)


def evaluation_outcome(value: JSON, ending: Ending, limits: MemoryLimits, batch: int) -> Outcome:
    """Outcome of the evaluation after a training."""
    return probe_outcome(value.get("evaluation") if isinstance(value, dict) else None, ending, limits, batch)


def rehearsal_outcome(value: JSON, ending: Ending, limits: MemoryLimits, request: RehearsalRequest) -> Outcome:
    """Outcome of a complete plan."""
    try:
        answer = RehearsalAnswer.model_validate(value)
    except ValidationError as error:
        return _unusable(error)
    peak = _peak(answer.held, ending, limits)
    if (over := _over(answer.held, peak, limits)) is not None:
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


def evaluating(value: JSON, limits: MemoryLimits, *, reported: bool) -> bool:
    """True if a rehearsal that did not fit exceeded its budget in the evaluation: it reported an evaluation and did not end, or
    its training stayed within the budget."""
    try:
        answer = RehearsalAnswer.model_validate(value)
    except ValidationError:
        return reported
    memory = answer.held
    most = memory.step_peak_bytes + memory.workers_bytes if limits.device == "cpu" else memory.accelerator_bytes or 0
    # Memory that only the group or the host measured, or the accelerator's own cache, may belong to training or evaluation.
    return reported and answer.train_peak_bytes <= limits.budget_bytes < most and memory.accelerator_retries == 0


def notes(returned: JSON) -> tuple[str, ...]:
    """Notes of a child for the reader of the calibration."""
    values = returned.get("notes") if isinstance(returned, dict) else None
    return tuple(note for note in values if isinstance(note, str)) if isinstance(values, list) else ()


def _unusable(error: ValidationError) -> Infrastructure:
    return Infrastructure(
        detail=f"the measuring process returned an invalid answer ({count_of(error.error_count(), 'invalid field')})"
    )


def _peak(memory: ChildMemory, ending: Ending, limits: MemoryLimits) -> Peak:
    host = max(memory.step_peak_bytes, memory.load_peak_bytes) + memory.workers_bytes
    if limits.group_base_bytes is not None:
        host = max(host, ending.group_growth_bytes + limits.group_base_bytes)
    return Peak(
        demand_bytes=host,
        anonymous_bytes=max(0, memory.step_peak_bytes - memory.shared_bytes),
        shared_bytes=memory.shared_bytes,
        file_bytes=memory.file_bytes,
        begin_bytes=memory.begin_bytes,
        accelerator_bytes=memory.accelerator_bytes,
        accelerator_allocated_bytes=memory.accelerator_allocated_bytes,
    )


def _over(memory: ChildMemory, peak: Peak, limits: MemoryLimits) -> OutOfMemory | None:
    """Outcome of a run that completed but does not fit. None: it fits."""
    if memory.accelerator_retries > 0:
        detail = f"the allocator flushed its cache {count_of(memory.accelerator_retries, 'time')} to free memory"
        return OutOfMemory(source="accelerator", detail=detail, peak=peak)
    demand = peak.bytes_on(limits.device)
    if demand > limits.budget_bytes:
        over = f"it ran, but used {format_bytes(demand)}, more than the budget of {format_bytes(limits.budget_bytes)}"
        return OutOfMemory(source="budget", detail=over, peak=peak)
    if limits.device != "cpu" and peak.demand_bytes > limits.host_budget_bytes:
        used, budget = format_bytes(peak.demand_bytes), format_bytes(limits.host_budget_bytes)
        over = f"it ran, but used {used} of host memory, more than the host budget of {budget}"
        return OutOfMemory(source="budget", detail=over, peak=peak)
    return None


LARGE_SHARE: Final = 0.8
"""Share of a budget above which the memory of Python and torch is the cause."""


class KeptMemory(Frozen):
    """Memory that remains after samples were read, as a child reported it before it read further samples."""

    kept_bytes_per_sample: float
    train_samples: int

    def __str__(self) -> str:
        return (
            f"the dataset keeps {format_bytes(self.kept_bytes_per_sample)} of each sample that it has read, "
            f"{format_bytes(self.kept_bytes_per_sample * self.train_samples)} after {count_of(self.train_samples, 'sample')}"
        )


def failure(ending: Ending, budget_bytes: int, kept_memory: KeptMemory | None = None, *, torch_bytes: int = 0) -> BatchcalError:
    """Return the reason why the examination failed, as an error for the user.

    Args:
        kept_memory: memory that read samples leave behind. None: the child measured none.
        torch_bytes: memory of Python and torch without the task. 0: unknown.
    """
    outcome = classify(ending, lambda value: Infrastructure(detail="no answer"))
    budget = f"the budget is {format_bytes(budget_bytes)}"
    match outcome:
        case UserCodeFailed():
            link = None if ending.raised is None else ending.raised.chain[0]
            kind = UsageError if link is not None and link.is_a(UsageError) else UserCodeError
            size_independent = link is not None and any(map(link.is_a, SIZE_INDEPENDENT))
            if kind is UserCodeError and ending.phase == "warm-up" and not size_independent:
                kind = SizeRefused
            return kind(outcome.error, known=outcome.evidence, try_=outcome.hint)
        case OutOfMemory():
            memory = format_bytes(max(ending.peak_anonymous_bytes, ending.group_growth_bytes))
            time = OUT_OF_MEMORY_TIME.get(ending.phase, "on its first small batch")
            cause = "stopped by the watchdog" if outcome.source == "watchdog" else "an allocation failed"
            detail = f"; {outcome.detail}" if outcome.detail else ""
            if kept_memory is not None:
                detail += f"; {kept_memory}"
            if torch_bytes > budget_bytes * LARGE_SHARE:
                detail += f"; Python and torch alone need {format_bytes(torch_bytes)}"
            return NothingFits(
                f"nothing fits: the task ran out of memory {time} ({cause} at {memory})",
                known=f"{budget}{detail}",
                try_="a larger container or --memory-limit, or "
                + (
                    "a bound for what the dataset keeps (a cache, a list that grows)"
                    if kept_memory is not None
                    else "smaller samples, or a dataset that keeps fewer of them"
                    if ending.phase == "read"
                    else "a smaller model, or smaller samples"
                ),
            )
        case TimedOut() if outcome.limit_name:
            activity = ACTIVITY[outcome.phase]
            return Partial(
                f"{outcome.limit_name} ended while {activity}",
                known=outcome.detail,
                try_="a longer --time-limit"
                + ("" if outcome.phase == "start" else "; if that does not help, the traceback shows the line that hangs")
                + ('; lines that train belong below `if __name__ == "__main__":`' if outcome.phase == "load" else "")
                + ("; to see how long a sample takes, read one by hand: task().train_data[0]" if outcome.phase == "read" else ""),
            )
        case TimedOut():
            return UserCodeError(
                f"the task hangs: it {UNFINISHED[outcome.phase]} within {outcome.limit_s:.0f} s",
                known=outcome.detail,
                try_='put the lines that train below `if __name__ == "__main__":`, or call the factory by hand'
                if outcome.phase == "load"
                else "read one sample by hand: task().train_data[0]"
                if outcome.phase == "read"
                else "call the factory by hand, and run one step of its training",
            )
        case _:
            return GuardError(
                "the task could not be examined",
                known=f"{outcome.kind}: {ending.output[-500:] or ending.infrastructure or ending.exit_status}",
            )
