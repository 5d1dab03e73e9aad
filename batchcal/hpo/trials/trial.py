"""One trial, as its parent runs it: in a fenced child, stopped on request, with its outcome returned as a value."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pydantic import ValidationError

from batchcal.core.errors import GuardError, NothingFits, UsageError
from batchcal.core.units import count_of
from batchcal.guard.classify import classify
from batchcal.guard.ending import Ending
from batchcal.guard.launch import FunctionJob
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.guard.outcome import Infrastructure, OutOfMemory, Suspect, Swapping, UserCodeFailed
from batchcal.guard.run import ChildLimits, run
from batchcal.hpo.trials.epoch_judge import EpochJudge, Judge, StopTrial
from batchcal.hpo.trials.facts import DIVERGED, OUT_OF_MEMORY
from batchcal.hpo.trials.job import TrialAnswer, TrialRequest, TrialState, run_trial
from batchcal.machine.cgroup import memory_meter
from batchcal.measure.children.launchers import Launchers
from batchcal.measure.outcomes import described
from batchcal.workload.model.loss_error import LossIsNoNumber


@dataclass(frozen=True)
class TrialEnd:
    """Outcome of a trial."""

    state: TrialState
    answer: TrialAnswer | None = None
    """Answer of a complete trial."""
    kind: str = ""
    """Class of the outcome of a failed trial, such as `out-of-memory` or `user-code-failed`."""
    why: str = ""
    traceback: str = ""
    """Traceback of the user's code."""
    peak_bytes: int = 0
    """Peak host memory of its child, bytes, as observed. For a complete trial, see the answer."""
    wall_s: float = 0.0


class TrialRunner:
    """Runs trials, one after another.

    Args:
        launchers: start the children. Their creator closes them.
    """

    def __init__(self, launchers: Launchers) -> None:
        self._launchers = launchers

    def run(self, request: TrialRequest, judge: Judge, *, total_s: float | None = None) -> TrialEnd:
        """Run `request` to its end, whatever the outcome. When this returns or raises, its child is gone and its memory is free.

        Args:
            judge: called for every epoch.
            total_s: seconds after which the trial counts as hanging, however active it is.

        Raises:
            UsageError: the factory does not accept the sampled values, or the task has no such metric. All trials would fail.
            GuardError: no child could be started.
        """
        plan = request.plan
        meter = memory_meter()
        job = FunctionJob(
            run_trial, request.model_dump(mode="json"), request.reference.directory, self._launchers.environment(plan.allocator)
        )
        limits = ChildLimits(
            allowed_bytes=request.memory_limit_bytes,
            total_s=total_s,
            host_fence=False,
            own_fence=request.options.fence and request.memory_limit_bytes is not None,
            neighbours=True,
        )
        start_s = time.monotonic()
        listener = EpochJudge(judge)
        try:
            ending = self._run_child(job, plan.allocator, meter, limits, listener)
        except StopTrial:
            peak, wall_s = listener.peak_bytes, time.monotonic() - start_s
            return TrialEnd("pruned", why=listener.why, peak_bytes=peak, wall_s=wall_s)
        finally:
            meter.close()
            listener.close()
        if listener.error is not None:
            raise listener.error
        if ending.has_result:
            try:
                answer = TrialAnswer.model_validate(ending.returned)
            except ValidationError as error:
                return TrialEnd(
                    "failed", kind="infrastructure", why=f"its result has {count_of(error.error_count(), 'invalid value')}"
                )
            return TrialEnd("complete", answer, peak_bytes=answer.peak_bytes, wall_s=ending.wall_s)
        return _failure(ending)

    def _run_child(
        self, job: FunctionJob, allocator: str, meter: GroupMeter, limits: ChildLimits, listener: EpochJudge
    ) -> Ending:
        launcher = self._launchers.get(allocator)
        try:
            ending = run(job, launcher, meter, limits, listener.add, check=listener.check)
            if ending.has_result or (not ending.infrastructure and launcher.is_alive()):
                return ending
        except GuardError:
            pass
        # The process that forks the children has died, and they with it. Start a new one, once.
        self._launchers.drop(allocator)
        return run(job, self._launchers.get(allocator), meter, limits, listener.add, check=listener.check)


def _failure(ending: Ending) -> TrialEnd:
    """Raises:
    UsageError: the cause is not a trial.
    """
    outcome = classify(ending, lambda value: Infrastructure(detail="the child process returned no result"))
    link = ending.raised.chain[0] if ending.raised is not None else None
    peak, why = ending.peak_anonymous_bytes, described(outcome)
    if link is not None and link.is_a(UsageError):
        what, known, try_ = link.told or (why.partition(": ")[2] or why, "", "")
        raise UsageError(what, known=known, try_=try_ or "use the argument names of the factory in [hpo.space] and [task.args]")
    headline = link.told[0] if link is not None and link.told else why
    if link is not None and link.is_a(LossIsNoNumber):
        # The trial ran, with a bad result: the sampler learns from it.
        return TrialEnd("pruned", kind=DIVERGED, why=headline, peak_bytes=peak, wall_s=ending.wall_s)
    if link is not None and link.is_a(NothingFits):
        return TrialEnd("failed", kind=OUT_OF_MEMORY, why=headline, peak_bytes=peak, wall_s=ending.wall_s)
    kind = OUT_OF_MEMORY if isinstance(outcome, OutOfMemory | Swapping) else outcome.kind
    if isinstance(outcome, Suspect):
        return TrialEnd("failed", kind="crashed", why=outcome.detail, peak_bytes=peak, wall_s=ending.wall_s)
    traceback = (outcome.traceback or outcome.output).strip() if isinstance(outcome, UserCodeFailed) else ""
    return TrialEnd("failed", kind=kind, why=why, traceback=traceback, peak_bytes=peak, wall_s=ending.wall_s)
