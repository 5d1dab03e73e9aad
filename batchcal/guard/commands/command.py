"""Start a command under its own supervisor: a user's program with its arguments, and all processes that it starts."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcal.core.errors import GuardError
from batchcal.guard.channel.wire import JSON, Message
from batchcal.guard.cleanup.private_folder import PrivateFolder, no_room
from batchcal.guard.commands.rank import SOCKET_VARIABLE
from batchcal.guard.commands.supervisor import END_LIMIT_S, SOCKET_NAME, STATUS_NAME
from batchcal.guard.ending import Ending
from batchcal.guard.launch import PACKAGE_PARENT, StartedChild, start_module
from batchcal.guard.limits.watchdog import GroupMeter
from batchcal.guard.run import ChildLimits, Listener, watch_child
from batchcal.machine.meters import descendants

LIGHT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of a supervisor, which computes nothing. Its command has the environment of the job."""


@dataclass(frozen=True)
class CommandJob:
    """A command line as the user would start it."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    """Complete environment of the command, except the variable that names the supervisor's socket."""
    working_directory: str


class CommandLauncher:
    """Starts commands. Each has a supervisor: the child that is watched, killed and waited for."""

    def __init__(self) -> None:
        self._home = PrivateFolder()
        self._numbers = itertools.count()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def make_scratch(self) -> Path:
        """Return a new folder for temporary files of a command. It is removed with the launcher, however this process ends."""
        path = self._home.path / f"scratch-{next(self._numbers)}"
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise no_room(error) from error
        return path

    def start(self, job: CommandJob) -> StartedChild:
        """Start `job`. If its program does not exist, this becomes an exit status, as in a shell.

        Raises:
            GuardError: no supervisor could be started.
        """
        directory = self._home.path / str(next(self._numbers))
        try:
            directory.mkdir(mode=0o700)
        except OSError as error:
            raise no_room(error) from error
        request: Message = {
            "argv": [*job.argv],
            "environment": dict(job.environment),
            "working_directory": job.working_directory,
            "directory": str(directory),
        }
        environment = {**os.environ, **LIGHT, "PYTHONPATH": PACKAGE_PARENT}
        mark = f"{SOCKET_VARIABLE}={directory / SOCKET_NAME}"
        process, started = start_module("batchcal.guard.commands.supervisor", environment, request, directory, mark=mark)
        self._processes[process.pid] = process
        return started

    def kill(self, child: StartedChild) -> None:
        """Send SIGKILL to all processes of the command at once. The supervisor ensures that none is left, and exits."""
        if child.exit_status is None:
            for process in descendants(child.pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            child.control.send({"stop": True})

    def poll(self, child: StartedChild) -> bool:
        """Set `child.exit_status` and return True if the command has ended and none of its processes is left.

        Raises:
            GuardError: the supervisor died, or could not end every process.
        """
        if child.exit_status is not None:
            return True
        process = self._processes[child.pid]
        if process.poll() is None:
            return False
        del self._processes[child.pid]
        ended = _read_status(child)
        if ended is None or ended.get("left"):
            running = "" if ended is None else f"processes that could not be ended: {ended['left']}"
            raise GuardError(
                "the process that supervises the command ended unexpectedly",
                known=running or f"exit status {process.returncode}",
            )
        status = ended.get("status")
        child.exit_status = status if isinstance(status, int) else -signal.SIGKILL
        return True

    def close(self) -> None:
        """End all commands."""
        for process in self._processes.values():
            process.send_signal(signal.SIGUSR2)
        for process in self._processes.values():
            try:
                process.wait(END_LIMIT_S + 1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._home.remove()


def run_command(
    job: CommandJob,
    launcher: CommandLauncher,
    group: GroupMeter,
    limits: ChildLimits,
    listen: Listener | None = None,
    *,
    check: Callable[[], None] | None = None,
    is_complete: Callable[[], bool] | None = None,
) -> Ending:
    """Run `job` until it ends in any way. When this returns or raises, all processes that it started are gone.

    Its return value is `{"ranks": {...}}`, the last report of each rank. Its peak is the peak of the complete tree.

    Args:
        limits: `allowed_bytes` is for the complete tree.
        listen, check: as for `run`.
        is_complete: as for `watch_child`.

    Raises:
        GuardError: no supervisor could be started.
    """
    kills_before = group.oom_kills()
    return watch_child(
        launcher.start(job), launcher, group, limits, listen, check=check, is_complete=is_complete, kills_before=kills_before
    )


def _read_status(child: StartedChild) -> dict[str, JSON] | None:
    try:
        value = json.loads((child.directory / STATUS_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
