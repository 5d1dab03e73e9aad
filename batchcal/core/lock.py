"""One at a time across processes, where the file system allows it. Correctness never rests on it.

Without a lock two replicas both measure, and the last one to rename wins; both files are valid.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self

from batchcal.core.clock import Clock, SystemClock

if TYPE_CHECKING:
    from filelock import BaseFileLock

LockState = Literal["held", "done", "timed-out", "unavailable"]
"""`held`: ours until released; `done`: what we wanted to make is there, made by another; `timed-out`: another held it for as
long as we would wait; `unavailable`: no lock can be had here. After the last two one goes on without."""

POLL_S: Final = 0.1
"""Seconds between two looks, on average; each wait is drawn from 50 % to 150 % of it so that replicas do not march in step."""


class LockResult(NamedTuple):
    state: LockState
    notice: str = ""
    """Why one goes on without it; empty where it is held or not needed."""


_SIGNED: Final = b"batchcal lock:"
_MOST_SIGNED: Final = 500


def _never() -> bool:
    return False


def _silent(text: str) -> None:
    return None


class Lock:
    """An advisory lock on a file, released when its holder dies, however it dies.

    The descriptor is closed on exec, so that programs started meanwhile do not hold it. A process that is forked without
    exec may: start the zygote first, then take the lock.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._lock: BaseFileLock | None = None

    def acquire(self, *, wait_s: float, done: Callable[[], bool] = _never, waits: Callable[[str], None] = _silent) -> LockResult:
        """Take the lock, or wait for at most `wait_s` seconds until it is free or `done()` is true.

        `done` is asked before each look and once more when the lock was got, since its last holder may have made what
        we want. `waits` is called once, where it has to wait, with a sentence about who holds the lock. Never raises for what
        the file system does.
        """
        from filelock import FileLock, Timeout

        give_up_at = self._clock.monotonic() + wait_s
        lock = FileLock(self._path, mode=0o600, thread_local=False)
        waiting = False
        while True:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                pass
            except (OSError, NotImplementedError) as error:
                why = (error.strerror if isinstance(error, OSError) else None) or str(error)
                return LockResult("unavailable", f"no lock on {self._path} ({why}): another calibration may run at the same time")
            else:
                if done():
                    lock.release()
                    return LockResult("done")
                self._lock = lock
                self._sign()
                return LockResult("held")
            if done():
                return LockResult("done")
            left = give_up_at - self._clock.monotonic()
            if left <= 0:
                return LockResult(
                    "timed-out", f"another process has held {self._path} for {wait_s:g} s: going on without waiting"
                )
            if not waiting:
                waiting = True
                waits(f"another calibration of this file runs{self._holder()}; waiting for its result, {wait_s:g} s at most")
            self._sleep(min(left, POLL_S * random.uniform(0.5, 1.5)))

    def _sign(self) -> None:
        """Leave for those who wait who holds the lock; a file that is not ours stays as it is."""
        with contextlib.suppress(OSError, ValueError), self._path.open("rb+") as file:
            if file.read(len(_SIGNED)) in (b"", _SIGNED):
                file.seek(0)
                file.truncate()
                now = self._clock.now().isoformat(timespec="seconds")
                file.write(_SIGNED + f" process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())

    def _holder(self) -> str:
        """` (process 12 on node-3 since 2026-01-31T12:00:00+00:00)`, as far as it is known."""
        with contextlib.suppress(OSError, ValueError):
            text = self._path.read_bytes()[:_MOST_SIGNED]
            if text.startswith(_SIGNED):
                return f" ({text.removeprefix(_SIGNED).decode(errors='replace').strip()})"
        return ""

    @property
    def held(self) -> bool:
        return self._lock is not None

    def release(self) -> None:
        """Let it go. Does nothing where it is not held; the lock's file stays, since removing it would split its waiters."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):  # a disk that fails here fails the writes too, which say so
                lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
