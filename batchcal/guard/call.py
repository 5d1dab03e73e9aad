"""Run one function in its own child and wait for the result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from batchcal.core.errors import GuardError
from batchcal.guard.channel.wire import JSON
from batchcal.guard.job import Function, name_of
from batchcal.guard.launch import FunctionJob, SpawnLauncher
from batchcal.guard.run import ChildLimits, run
from batchcal.machine.allocator import resolve


class Unwatched:
    """A memory group that never trips, for functions that hold no batch."""

    limit_bytes: Final = 1 << 62

    def hard_bytes(self) -> int:
        return 0

    def swap_bytes(self) -> int:
        return 0

    def oom_kills(self) -> int | None:
        return None


def call(function: Function, arguments: dict[str, JSON] | None = None, *, timeout_s: float = 60.0) -> JSON:
    """Return the result of `function` from a new process.

    Raises:
        GuardError: `function` raised, died, or took longer than `timeout_s` seconds.
    """
    launcher = SpawnLauncher(resolve("default"), os.environ)
    try:
        job = FunctionJob(function, arguments or {}, str(Path.cwd()), dict(os.environ))
        ending = run(job, launcher, Unwatched(), ChildLimits(phase_s={"start": timeout_s}, total_s=timeout_s))
    finally:
        launcher.close()
    if ending.has_result:
        return ending.returned
    details = ending.raised.headline if ending.raised is not None else ending.kill_reason or f"exit status {ending.exit_status}"
    raise GuardError(f"{name_of(function)} returned no result", known=details)
