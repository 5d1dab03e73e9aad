"""End processes: a group, a tree, orphans of a tree."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from batchcal.machine.meters import descendants
from batchcal.machine.tree_meter import is_zombie, started_at

PAUSE_S: Final = 0.002
PROC: Final = Path("/proc")


def kill_group(leader: int) -> None:
    """Send SIGKILL to the process group of `leader`. Does nothing if the group is empty.

    `leader` must be a child that is not reaped yet, so that no other process has its pid. A child that was just forked has no
    group and no other process yet: it is killed by its own pid, or it would continue (observed when the first check of its
    memory was already above the limit).
    """
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGKILL)
    except PermissionError:
        pass


def end_orphans(start_times: Mapping[int, str], mark: str, *, limit_s: float) -> None:
    """Send SIGKILL to the members of a tree after its root is gone and its orphans have another parent.

    Args:
        start_times: members with their start times (`started_at`).
        mark: `NAME=value` in the environment that every member was started with.
        limit_s: longest duration, seconds.
    """
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        same = {pid for pid, start_time in start_times.items() if started_at(pid) == start_time}
        remaining = {pid for pid in (*same, *started_with(mark)) if not is_zombie(pid)}
        if not remaining:
            return
        below = (other for pid in remaining for other in descendants(pid))
        stop_and_kill((*remaining, *below))
        time.sleep(PAUSE_S)


def end_descendants(root: int, *, limit_s: float) -> tuple[int, ...]:
    """Send SIGKILL to all descendants of `root`, in any session or group, until none is left.

    `root` must be the parent that orphans get (a sub-reaper), and must reap: a member is gone once it is reaped.

    Returns:
        Processes that remain after `limit_s` seconds.
    """
    until = time.monotonic() + limit_s
    while True:
        reap()
        remaining = [pid for pid in descendants(root) if not is_zombie(pid)]
        if not remaining or time.monotonic() > until:
            return tuple(remaining)
        stop_and_kill(remaining)
        time.sleep(PAUSE_S)


def stop_and_kill(processes: Iterable[int]) -> None:
    """Send SIGKILL to all `processes`. All are stopped before the first is killed, so that none forks in between."""
    pids = tuple(processes)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def reap() -> dict[int, int]:
    """Reap all children that have ended. Return the exit code, or minus the signal number, by process."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def started_with(mark: str) -> tuple[int, ...]:
    """Processes that were started with `mark`, such as `NAME=value`, in their environment."""
    processes = []
    for folder in PROC.iterdir() if PROC.is_dir() else ():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                processes.append(int(folder.name))
    return tuple(processes)
