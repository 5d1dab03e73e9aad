"""One trial, from outside: run in a fenced child, given up when asked, and whatever becomes of it told as a value."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from batchcal.core.errors import UsageError
from batchcal.guard.cgroup import memory_meter
from batchcal.guard.classify import classify
from batchcal.guard.launch import Job
from batchcal.guard.outcome import Infrastructure, OutOfMemory, Swapping
from batchcal.guard.run import Limits, run
from batchcal.guard.wire import Message
from batchcal.hpo.request import Reached, TrialAnswer, TrialRequest, TrialState
from batchcal.measure.attempts import said
from batchcal.measure.children.launchers import Launchers

JOB: Final = "batchcal.hpo.inside:run_trial"


class GiveUp(Exception):
    """Raised by who listens to a trial that is not wanted any more: its child is ended at once."""

    def __init__(self, why: str, reached: Reached) -> None:
        super().__init__(why)
        self.reached = reached


@dataclass(frozen=True)
class TrialEnd:
    """What became of a trial."""

    state: TrialState
    answer: TrialAnswer | None = None
    """Of one that is complete."""
    kind: str = ""
    """Of one that failed: the class of its outcome, such as `out-of-memory` or `user-code-failed`."""
    why: str = ""
    peak_bytes: int = 0
    """Most host memory that its child was seen to hold; of one that is complete see the answer."""
    wall_s: float = 0.0


class TrialRunner:
    """Runs trials, one after the other. Close it: it keeps a process with torch imported, from which children are forked."""

    def __init__(self, environ: Mapping[str, str] | None = None, *, note: Callable[[str], None] = lambda text: None) -> None:
        self._launchers = Launchers(os.environ if environ is None else environ, note=note, spawn_only=False)

    def run(self, request: TrialRequest, listen: Callable[[Reached], None], *, total_s: float | None = None) -> TrialEnd:
        """Runs `request` to its end, whatever that is. When this returns or raises, its child is gone and its memory back.

        Args:
            listen: told of every epoch; may raise `GiveUp`.
            total_s: seconds after which it is taken to hang, however much it does.

        Raises:
            UsageError: the factory does not take what was sampled, or the task has no such metric: no trial would do.
            GuardError: no child could be started.
        """
        plan = request.plan
        meter = memory_meter()
        job = Job(JOB, request.model_dump(mode="json"), request.reference.directory, self._launchers.environment(plan.allocator))
        limits = Limits(allowed_bytes=plan.budget_bytes, total_s=total_s, host_fence=plan.device == "cpu")

        def heard(message: Message) -> None:
            try:
                reached = Reached.model_validate(message)
            except ValidationError:  # from the user's code, which may write where it pleases
                return
            listen(reached)

        began = time.monotonic()
        try:
            ending = run(job, self._launchers.get(plan.allocator), meter, limits, heard)
        except GiveUp as error:
            peak, wall_s = error.reached.peak_bytes, time.monotonic() - began
            return TrialEnd("pruned", why=str(error), peak_bytes=peak, wall_s=wall_s)
        finally:
            meter.close()
        if ending.has_result:
            try:
                answer = TrialAnswer.model_validate(ending.returned)
            except ValidationError as error:
                return TrialEnd("failed", kind="infrastructure", why=f"its answer has {error.error_count()} mistakes")
            return TrialEnd("complete", answer, peak_bytes=answer.peak_bytes, wall_s=ending.wall_s)
        outcome = classify(ending, lambda value: Infrastructure(detail="no answer"))
        why = said(outcome)
        bases = ending.raised.chain[0].bases if ending.raised is not None else ()
        if f"{UsageError.__module__}.{UsageError.__qualname__}" in bases:
            raise UsageError(why.partition(": ")[2] or why, try_="names of the factory in [hpo.space] and [task.args]")
        peak = ending.peak_anonymous_bytes
        kind = "out-of-memory" if isinstance(outcome, OutOfMemory | Swapping) else outcome.kind
        return TrialEnd("failed", kind=kind, why=why, peak_bytes=peak, wall_s=ending.wall_s)

    def close(self) -> None:
        self._launchers.close()
