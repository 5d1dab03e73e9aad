"""The workers of one command. A `WorkerPool` controls them, reads their messages and replaces those that die."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from batchcal.core.errors import (
    BatchcalError,
    GuardError,
    NoCalibration,
    NothingFits,
    NotSaved,
    Partial,
    UsageError,
    UserCodeError,
)
from batchcal.core.progress import Notice, Progress
from batchcal.core.signals import signal_name
from batchcal.guard.commands.helper import HelperProcess
from batchcal.hpo.blueprint import Assignment
from batchcal.hpo.workers.process import FINISH, STOP
from batchcal.values.study_events import FromWorker, StudyEvent, StudyWorkerDied, TrialEnded, read_back

TICK_S: Final = 0.5
GRACE_S: Final = 20.0
"""Seconds for a worker to stop: the child of its trial ends, and the study records that the trial must run again."""
MOST_DEATHS: Final = 5
"""Most deaths of each worker, with no trial ended in between."""
LONGEST_WAIT_S: Final = 15.0
_ERRORS: Final[dict[str, type[BatchcalError]]] = {
    kind.__name__: kind for kind in (UsageError, NoCalibration, NothingFits, UserCodeError, Partial, NotSaved, GuardError)
}


class WorkerPool:
    """Workers as processes, one for each assignment.

    Args:
        logs: folder of the workers' output.
        tick: called about twice a second while they run.
    """

    def __init__(
        self,
        assignments: Sequence[Assignment],
        *,
        logs: Path,
        progress: Progress[StudyEvent],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._progress, self._tick, self._logs = progress, tick, logs
        self._assignments = assignments
        self._members: dict[int, _Member] = {}
        self._awaited: list[tuple[float, Assignment]] = []
        """Replacements of workers that died, each with its start time."""
        self._selector = selectors.DefaultSelector()
        self._ending = False
        self._stop_until: float | None = None
        """Time at which workers that were ordered to stop are killed."""
        self._deaths: Counter[int] = Counter()
        """Deaths by worker, since it last ended a trial."""
        self._noticed: set[Notice] = set()
        """Notices that were reported. A replacement of a worker does not report them again."""
        self._next_tick = 0.0
        self._error: BatchcalError | None = None

    def run(self) -> None:
        """Run until all workers have ended: the study is done, or `finish` was called.

        Raises:
            BatchcalError: the error that ended a worker for good. All workers have stopped then.
            GuardError: workers die again and again.
            Interrupted: a signal arrived. All workers have stopped, and their trials will run again.
        """
        try:
            for assignment in self._assignments:
                self._start(assignment)
            while self._members or self._awaited:
                self._listen(TICK_S)
                self._start_awaited()
                if self._stop_until is not None and time.monotonic() > self._stop_until:
                    self._end_all()
                self._tick_if_due()
        except BaseException:
            self.stop()
            raise
        finally:
            self._end_all()
            self._selector.close()
        self._tick()
        if self._error is not None:
            raise self._error

    def _tick_if_due(self) -> None:
        """Call `tick` if it is due, however many messages arrive."""
        if time.monotonic() >= self._next_tick:
            self._tick()
            self._next_tick = time.monotonic() + TICK_S

    def finish(self) -> None:
        """Begin no further trial. May be called from another thread."""
        self._ending = True
        for member in list(self._members.values()):
            member.process.send(FINISH)

    def stop(self) -> None:
        """Stop the running trials, which will run again. May be called from another thread."""
        self._ending = True
        self._stop_until = self._stop_until or time.monotonic() + GRACE_S
        for member in list(self._members.values()):
            member.process.send(STOP)

    def _start(self, assignment: Assignment) -> None:
        member = _Member(assignment, self._logs)
        self._members[assignment.index] = member
        if self._ending:  # requested by another thread in the meantime
            member.process.send(FINISH)
        self._selector.register(member.process.stdout, selectors.EVENT_READ, member)

    def _start_awaited(self) -> None:
        due = [entry for entry in self._awaited if self._ending or time.monotonic() >= entry[0]]
        self._awaited = [entry for entry in self._awaited if entry not in due]
        for _, assignment in due:
            if not self._ending:
                self._start(assignment)

    def _listen(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            member = key.data
            assert isinstance(member, _Member)
            messages = member.process.read()
            for message in messages or ():
                self._receive(member, message)
            if messages is None:
                self._remove(member)

    def _receive(self, member: _Member, message: dict[str, object]) -> None:
        error, name, values = message.get("error"), message.get("event"), message.get("values")
        if isinstance(error, dict):
            kind = _ERRORS.get(str(error.get("name")), BatchcalError)
            member.error = kind(str(error.get("what")), known=str(error.get("known")), try_=str(error.get("try")))
        elif isinstance(name, str) and isinstance(values, dict):
            event = read_back(name, values)
            if event is None:
                event = Notice(f"a message from a worker could not be read: {name}")
            if isinstance(event, Notice) and event in self._noticed:
                return
            if isinstance(event, TrialEnded):
                self._deaths[member.index] = 0
            if isinstance(event, Notice):
                self._noticed.add(event)
            self._progress.event(FromWorker(event, member.index) if len(self._assignments) > 1 else event)

    def _remove(self, member: _Member) -> None:
        self._selector.unregister(member.process.stdout)
        status = member.process.close()
        del self._members[member.index]
        if member.error is not None:
            # All workers run the same study: the error that ended one will end the others.
            self._error = self._error or member.error
            self.stop()
        elif status != 0 and not self._ending:
            self._replace(member, status)

    def _replace(self, member: _Member, status: int) -> None:
        self._deaths[member.index] += 1
        deaths = self._deaths[member.index]
        reason = f"killed by {signal_name(-status)}" if status < 0 else f"exited with code {status}"
        if deaths > MOST_DEATHS:
            raise GuardError(
                f"worker {member.index} died {deaths} times without finishing a trial; last: {reason}",
                known=member.process.log_tail() or "its log is empty",
                try_="batchcal hpo run CONFIG    continues the study",
            )
        self._progress.event(StudyWorkerDied(worker=member.index, how=reason, action="a new worker replaces it"))
        # The cause may pass: a database takes some seconds to restart.
        wait_s = min(2.0 ** (deaths - 1) - 1, LONGEST_WAIT_S)
        self._awaited.append((time.monotonic() + wait_s, member.assignment))

    def _end_all(self) -> None:
        """End all workers, whatever they do."""
        until = self._stop_until or time.monotonic() + GRACE_S
        for member in self._members.values():
            with contextlib.suppress(KeyError):
                self._selector.unregister(member.process.stdout)
            member.process.wait(until - time.monotonic())
        self._members.clear()
        self._awaited.clear()


class _Member:
    """One worker: its process, its assignment, and the error that ended it."""

    def __init__(self, assignment: Assignment, logs: Path) -> None:
        self.assignment, self.index = assignment, assignment.index
        self.error: BatchcalError | None = None
        # With the pid of this command: another one on the same machine has workers with the same numbers.
        log = logs / f"{assignment.blueprint.settings.study}-{os.getpid()}-worker-{assignment.index}.log"
        self.process = HelperProcess("batchcal.hpo.workers.process", directory=assignment.blueprint.reference.directory, log=log)
        self.process.send(assignment.model_dump_json())
