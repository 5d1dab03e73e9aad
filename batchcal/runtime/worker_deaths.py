"""A DataLoader worker that dies must end the training. It must not hang it, or end it in the middle of another operation.

torch raises the death of a worker from its SIGCHLD handler, at any point of the main thread. Inside `Queue.put`, the exception
leaves the queue's lock locked, and the end of the iterator then waits for that lock forever: 1 of 60 workers that died with their
first sample (torch 2.13, two cores, loaded). Inside the optimizer's step, it leaves parameters of two steps. Inside a save, it
damages the checkpoint.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import CodeType, FrameType
from typing import Final

from torch._C import _error_if_any_worker_fails
from torch.utils.data import _utils, dataloader

from batchcal.core.signals import signal_name
from batchcal.guard.children.report import Raised, describe

_FETCH: Final[CodeType] = dataloader._MultiProcessingDataLoaderIter._try_get_data.__code__
_KILLED: Final = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.]+)\.")
_EXITED: Final = re.compile(r"DataLoader worker \(pid[^)]*\).*exited unexpectedly(?: with exit code (\d+))?")

OBSERVED_WITHIN_S: Final = 0.5
"""Limit from the death of a process until its parent observes it. A process of 1 GiB takes 0.1 s to free its memory."""

_Handler = Callable[[int, FrameType | None], object]


@dataclass(frozen=True)
class WorkerDeath:
    """A DataLoader worker that ended too early."""

    signal: int | None = None
    """Signal that killed it. None: it ended by itself, or the cause is unknown."""

    def __str__(self) -> str:
        return (
            "a DataLoader worker ended"
            if self.signal is None
            else f"a DataLoader worker was killed by {signal_name(self.signal)}"
        )

    @property
    def from_outside(self) -> bool:
        """True if another process requested its end."""
        return self.signal in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def worker_death(raised: Raised) -> WorkerDeath | None:
    """Return the death of a worker that `raised` reports. None: it reports another error."""
    messages = [link.message for link in raised.chain]
    # If torch checks its workers after its handler has raised, the signal is only in the cause.
    killed = next((match for message in messages if (match := _KILLED.search(message)) is not None), None)
    if killed is not None:
        return WorkerDeath(_signal_called(killed[2].strip()))
    return WorkerDeath() if any(_EXITED.search(message) for message in messages) else None


def death_behind_a_lost_connection() -> WorkerDeath:
    """Return the death that reset a connection to a worker, as torch reports it while the iterator of the workers exists.

    A process closes its connections shortly before its parent can observe its end.
    """
    until = time.monotonic() + OBSERVED_WITHIN_S
    while True:
        try:
            _error_if_any_worker_fails()
        except RuntimeError as error:
            return worker_death(describe(error, "measure")) or WorkerDeath()
        if time.monotonic() > until:
            return WorkerDeath()
        time.sleep(0.005)


def _signal_called(description: str) -> int | None:
    """Return the signal with this text of strsignal, such as `Terminated`."""
    return next((number for number in signal.valid_signals() if signal.strsignal(number) == description), None)


def raise_while_fetching() -> None:
    """Let torch raise the death of a worker only while the main thread waits for a batch, when no operation is incomplete.

    Other deaths are raised by `raise_postponed`, or by torch's own check of its workers every 5 s of a wait. Call it in the main
    thread, before an iterator of workers is made. In other threads it does nothing.
    """
    _utils.signal_handling._set_SIGCHLD_handler()
    handler = signal.getsignal(signal.SIGCHLD) if sys.platform != "win32" else None
    if callable(handler) and not isinstance(handler, _WhileFetching):
        try:
            signal.signal(signal.SIGCHLD, _WhileFetching(handler))
        except ValueError:
            return  # not the main thread: torch has not set a handler either


def end_by_kill(worker: BaseProcess) -> None:
    """Make `terminate` send SIGKILL: a worker ignores SIGTERM, and torch and multiprocessing end a hung one by `terminate`."""
    started: object = getattr(worker, "_popen", None)
    kill: object = getattr(started, "kill", None)
    if callable(kill):
        vars(started)["terminate"] = kill


def raise_postponed() -> None:
    """Raise the death of a worker that could not be raised when it happened. Call it before waiting for a batch.

    Raises:
        RuntimeError: the error of torch.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, _WhileFetching):
        handler.raise_postponed()


class _WhileFetching:
    """Handler that calls `handler` only while the main thread waits for a batch."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        self._process = os.getpid()
        self._postponed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if _within(frame):
            self._handler(number, frame)
        else:
            self._postponed = True

    def raise_postponed(self) -> None:
        if self._postponed:
            self._postponed = False
            self._handler(signal.SIGCHLD, None)


def _within(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _FETCH:
            return True
        frame = frame.f_back
    return False
