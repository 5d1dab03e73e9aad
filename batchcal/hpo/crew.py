"""The workers that one command started: led, listened to, replaced when they die, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
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
from batchcal.core.progress import Field, Progress
from batchcal.core.signals import signal_name
from batchcal.hpo.blueprint import Assignment
from batchcal.hpo.member import FINISH, STOP

TICK_S: Final = 0.5
GRACE_S: Final = 20.0
"""For a worker that was told to stop: its trial's child ends, and the study learns that it is to be run again."""
MOST_DEATHS: Final = 5
"""Of each worker, with no trial ended in between."""
LONGEST_WAIT_S: Final = 15.0
_READ: Final = 1 << 16
_TAIL: Final = 2000
_ERRORS: Final[dict[str, type[BatchcalError]]] = {
    one.__name__: one for one in (UsageError, NoCalibration, NothingFits, UserCodeError, Partial, NotSaved, GuardError)
}


class Crew:
    """Workers as processes, one for each assignment.

    Args:
        logs: the folder of what they print.
        tick: called about twice a second while they work.
    """

    def __init__(
        self, assignments: Sequence[Assignment], *, logs: Path, progress: Progress, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._progress, self._tick, self._logs = progress, tick, logs
        self._assignments = assignments
        self._members: dict[int, _Member] = {}
        self._awaited: list[tuple[float, Assignment]] = []
        """Who takes the place of one that died, and when."""
        self._selector = selectors.DefaultSelector()
        self._ending = False
        self._stop_until: float | None = None
        """When who was told to stop is made to."""
        self._deaths: Counter[int] = Counter()
        """By worker, since it ended a trial."""
        self._noticed: list[dict[str, Field]] = []
        """What was told once is not told again by who takes another's place."""
        self._next_tick = 0.0
        self._error: BatchcalError | None = None

    def run(self) -> None:
        """Returns when all have ended: the study is done, or `finish` was asked for.

        Raises:
            BatchcalError: what ended a worker for good; all have stopped then.
            GuardError: they die again and again.
            Interrupted: a signal came; all have stopped, and what they ran will be run again.
        """
        try:
            for assignment in self._assignments:
                self._start(assignment)
            while self._members or self._awaited:
                self._listen(TICK_S)
                self._start_awaited()
                if self._stop_until is not None and time.monotonic() > self._stop_until:
                    self._end_all()
                self._tick_now_and_then()
        except BaseException:
            self.stop()
            raise
        finally:
            self._end_all()
            self._selector.close()
        self._tick()
        if self._error is not None:
            raise self._error

    def _tick_now_and_then(self) -> None:
        """However much is told meanwhile."""
        if time.monotonic() >= self._next_tick:
            self._tick()
            self._next_tick = time.monotonic() + TICK_S

    def finish(self) -> None:
        """No further trial is begun. May be called from another thread."""
        self._ending = True
        for member in list(self._members.values()):
            member.order(FINISH)

    def stop(self) -> None:
        """The trials that run are stopped, to be run again. May be called from another thread."""
        self._ending = True
        self._stop_until = self._stop_until or time.monotonic() + GRACE_S
        for member in list(self._members.values()):
            member.order(STOP)

    def _start(self, assignment: Assignment) -> None:
        member = _Member(assignment, self._logs)
        self._members[assignment.index] = member
        if self._ending:  # asked for by another thread meanwhile
            member.order(FINISH)
        self._selector.register(member.output, selectors.EVENT_READ, member)

    def _start_awaited(self) -> None:
        due = [one for one in self._awaited if self._ending or time.monotonic() >= one[0]]
        self._awaited = [one for one in self._awaited if one not in due]
        for _, assignment in due:
            if not self._ending:
                self._start(assignment)

    def _listen(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            member = key.data
            assert isinstance(member, _Member)
            messages = member.read()
            for message in messages or ():
                self._heard(member, message)
            if messages is None:
                self._left(member)

    def _heard(self, member: _Member, message: dict[str, object]) -> None:
        error, name, fields = message.get("error"), message.get("event"), message.get("fields")
        if isinstance(error, dict):
            kind = _ERRORS.get(str(error.get("name")), BatchcalError)
            member.error = kind(str(error.get("what")), known=str(error.get("known")), try_=str(error.get("try")))
        elif isinstance(name, str) and isinstance(fields, dict):
            if name == "trial_ended":
                self._deaths[member.index] = 0
            told: dict[str, Field] = {str(key): value for key, value in fields.items()}
            if name == "notice" and told in self._noticed:
                return
            if name == "notice":
                self._noticed.append(told)
            self._progress.event(name, {**told, "worker": member.index} if len(self._assignments) > 1 else told)

    def _left(self, member: _Member) -> None:
        self._selector.unregister(member.output)
        status = member.close()
        del self._members[member.index]
        if member.error is not None:
            # All work at the same: what ended one will end the others.
            self._error = self._error or member.error
            self.stop()
        elif status != 0 and not self._ending:
            self._died(member, status)

    def _died(self, member: _Member, status: int) -> None:
        self._deaths[member.index] += 1
        deaths = self._deaths[member.index]
        how = f"killed by {signal_name(-status)}" if status < 0 else f"ended with {status}"
        if deaths > MOST_DEATHS:
            raise GuardError(
                f"worker {member.index} of the study dies again and again; now it was {how}",
                known=member.last_words() or "it said nothing",
                try_="batchcal hpo run once more: the study goes on where it is",
            )
        self._progress.event("worker_died", {"worker": member.index, "how": how, "action": "another takes its place"})
        # What they die of may pass: a database that starts anew takes some seconds.
        wait_s = min(2.0 ** (deaths - 1) - 1, LONGEST_WAIT_S)
        self._awaited.append((time.monotonic() + wait_s, member.assignment))

    def _end_all(self) -> None:
        """Nobody is left, whatever they do."""
        until = self._stop_until or time.monotonic() + GRACE_S
        for member in self._members.values():
            with contextlib.suppress(KeyError):
                self._selector.unregister(member.output)
            member.wait(until - time.monotonic())
        self._members.clear()
        self._awaited.clear()


class _Member:
    """One worker's process."""

    def __init__(self, assignment: Assignment, logs: Path) -> None:
        self.assignment, self.index = assignment, assignment.index
        self.error: BatchcalError | None = None
        # Of this command: another on the same machine has workers of the same numbers.
        self._log = logs / f"{assignment.blueprint.settings.study}-{os.getpid()}-worker-{assignment.index}.log"
        logs.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C is for who leads, and tells the others itself.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "batchcal.hpo.member"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=assignment.blueprint.reference.directory,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.output = self._process.stdout
        self._buffer = b""
        self._write(assignment.model_dump_json())

    def order(self, word: str) -> None:
        self._write(word)

    def read(self) -> list[dict[str, object]] | None:
        """What it said since. None: it has ended."""
        data = os.read(self.output.fileno(), _READ)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [message for line in lines if isinstance(message := json.loads(line), dict)]

    def wait(self, timeout_s: float) -> None:
        """Until it has ended; after `timeout_s` it is made to."""
        try:
            self._process.wait(max(timeout_s, 0.0))
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.close()

    def close(self) -> int:
        """Its exit status; below 0: a signal's number."""
        status = self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self.output.close()
        return status

    def last_words(self) -> str:
        try:
            return self._log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
        except OSError:
            return ""

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()
