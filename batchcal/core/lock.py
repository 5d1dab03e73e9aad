"""Mutual exclusion of processes, if the file system supports it. Correctness never depends on it.

Without a lock two replicas both measure, and the last rename wins. Both files are valid.
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
"""`held`: ours until released; `done`: another process has made the wanted result; `timed-out`: another process held it for the
complete wait; `unavailable`: locks do not work here. After the last two, the caller continues without a lock."""

POLL_S: Final = 0.1
"""Mean seconds between two attempts. Each wait is random, from 50 % to 150 % of it, so that replicas do not stay in step."""


class LockResult(NamedTuple):
    state: LockState
    notice: str = ""
    """Reason to continue without the lock. Empty: it is held or not needed."""


_SIGNED: Final = b"batchcal lock:"
_MOST_SIGNED: Final = 500


def _never() -> bool:
    return False


def _silent(text: str) -> None:
    return None


class Lock:
    """An advisory lock on a file. It is released when its holder dies, for any reason.

    The descriptor is closed on exec, so that programs started meanwhile do not hold the lock. A process that is forked without
    exec may hold it: start the zygote first, then take the lock.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._lock: BaseFileLock | None = None

    def acquire(
        self, *, wait_s: float, done: Callable[[], bool] = _never, on_wait: Callable[[str], None] = _silent
    ) -> LockResult:
        """Take the lock, or wait for at most `wait_s` seconds until it is free or `done()` is true.

        `done` is called before each new attempt, and again after the lock is taken, because the last holder may have made the
        wanted result. `on_wait` is called once if it has to wait, with a sentence about the holder of the lock. Errors of the
        file system are never raised.
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
            remaining_s = give_up_at - self._clock.monotonic()
            if remaining_s <= 0:
                return LockResult(
                    "timed-out", f"another process has held {self._path} for {wait_s:g} s; continuing without the lock"
                )
            if not waiting:
                waiting = True
                on_wait(f"another calibration of this file is running{self._holder()}; waiting up to {wait_s:g} s for its result")
            self._sleep(min(remaining_s, POLL_S * random.uniform(0.5, 1.5)))

    def _sign(self) -> None:
        """Write the holder into the lock file, for processes that wait. A file that is not ours stays unchanged."""
        with contextlib.suppress(OSError, ValueError), self._path.open("rb+") as file:
            if file.read(len(_SIGNED)) in (b"", _SIGNED):
                file.seek(0)
                file.truncate()
                now = self._clock.now().isoformat(timespec="seconds")
                file.write(_SIGNED + f" process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())

    def _holder(self) -> str:
        """` (process 12 on node-3 since 2026-01-31T12:00:00+00:00)`. Empty: unknown."""
        with contextlib.suppress(OSError, ValueError):
            text = self._path.read_bytes()[:_MOST_SIGNED]
            if text.startswith(_SIGNED):
                return f" ({text.removeprefix(_SIGNED).decode(errors='replace').strip()})"
        return ""

    @property
    def is_held(self) -> bool:
        return self._lock is not None

    def release(self) -> None:
        """Release the lock. Does nothing if it is not held. The lock file stays, because removing it would split its waiters."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):  # if the disk fails here, the writes fail too and report it
                lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
