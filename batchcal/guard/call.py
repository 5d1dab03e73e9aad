"""Asks one thing in a child of its own and waits for the answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from batchcal.core.errors import GuardError
from batchcal.guard.allocator import resolve
from batchcal.guard.launch import Job, SpawnLauncher
from batchcal.guard.run import Limits, run
from batchcal.guard.wire import JSON


class _Unwatched:
    """A memory group that never trips: for questions that hold no batch."""

    limit_bytes: Final = 1 << 62

    def hard_bytes(self) -> int:
        return 0

    def swap_bytes(self) -> int:
        return 0

    def oom_kills(self) -> int | None:
        return None


def call(function: str, arguments: dict[str, JSON] | None = None, *, timeout_s: float = 60.0) -> JSON:
    """What `package.module:function` answers in a fresh process.

    Raises:
        GuardError: it raised, died, or took longer than `timeout_s` seconds.
    """
    launcher = SpawnLauncher(resolve("default"), os.environ)
    try:
        job = Job(function, arguments or {}, str(Path.cwd()), dict(os.environ))
        ending = run(job, launcher, _Unwatched(), Limits(phase_s={"start": timeout_s}, total_s=timeout_s))
    finally:
        launcher.close()
    if ending.has_result:
        return ending.returned
    known = ending.raised.headline if ending.raised is not None else ending.kill_reason or f"exit status {ending.exit_status}"
    raise GuardError(f"{function} gave no answer", known=known)
